import logging
import math
import threading

import pytest
import torch
from torch import nn

from kernel_pytorch.advice.prove.copies import UncopyableError, copy_of, double_of
from kernel_pytorch.advice.sample import Sample


class Model(nn.Module):
    """A linear layer with whatever else it is given."""

    def __init__(self, **attributes):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))
        vars(self).update(attributes)

    def forward(self, x):
        return self.linear(x) * self.scale


def inputs():
    return Sample((torch.randn(3, 4),))


def test_a_copy_is_equal_and_apart():
    model, sample = Model().eval(), inputs()
    copied = copy_of(model)
    assert torch.equal(sample.call(copied), sample.call(model))
    assert copied.training is False
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    assert sample.call(copied).abs().max() == 0
    assert sample.call(model).abs().max() > 0


def test_stored_tensors_with_a_history_are_copied_without_it():
    model = Model()
    model.last = sum(model.parameters(), start=torch.zeros(4, 4)).tanh()
    model.states = [model.last[0], {"deep": model.last * 2}]
    copied = copy_of(model)
    assert torch.equal(copied.last, model.last)
    assert torch.equal(copied.states[1]["deep"], model.states[1]["deep"])
    assert copied.last.grad_fn is None
    assert model.last.grad_fn is not None


@pytest.mark.parametrize(
    "lock",
    [
        threading.Lock(),
        threading.RLock(),
        threading.Condition(),
        threading.Semaphore(2),
        threading.BoundedSemaphore(2),
        threading.Event(),
    ],
    ids=lambda lock: type(lock).__name__,
)
def test_locks_are_made_anew(lock):
    copied = copy_of(Model(lock=lock, nested={"locks": [lock]}))
    assert type(copied.lock) is type(lock)
    assert copied.lock is not lock
    assert copied.nested["locks"][0] is copied.lock


def test_an_event_that_is_set_stays_set():
    event = threading.Event()
    event.set()
    assert copy_of(Model(event=event)).event.is_set()


def test_generators_of_torch_go_on_where_they_are():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    copied = copy_of(Model(generator=generator)).generator
    assert copied is not generator
    assert torch.equal(torch.rand(4, generator=copied), torch.rand(4, generator=generator))


def test_modules_of_python_and_loggers_are_shared():
    copied = copy_of(Model(library=math, log=logging.getLogger("model")))
    assert copied.library is math
    assert copied.log is logging.getLogger("model")


def test_parameters_of_one_memory_stay_so():
    model = Model()
    model.tied = nn.Parameter(model.linear.weight.detach().t())
    model.same = model.linear.weight
    model.part = model.linear.weight.detach()[1:]
    copied = copy_of(model)
    assert copied.same is copied.linear.weight
    with torch.no_grad():
        copied.linear.weight.fill_(7.0)
    assert copied.tied.eq(7.0).all()
    assert copied.part.eq(7.0).all()
    assert copied.tied.stride() == model.tied.stride()
    assert isinstance(copied.tied, nn.Parameter)
    assert not model.linear.weight.eq(7.0).any()


def test_old_weight_norm_and_lazy_modules_can_be_copied():
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(4, 4))
    normed(torch.randn(2, 4))
    x = torch.randn(2, 4)
    assert torch.equal(copy_of(normed)(x), normed(x))
    assert copy_of(nn.LazyLinear(3))(x).shape == (2, 3)


class Itself(Model):
    def __deepcopy__(self, memo):
        return self


class SharesAParameter(Model):
    def __deepcopy__(self, memo):
        copied = Model()
        copied.linear.weight = self.linear.weight
        return copied


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: Model(stream=(n for n in range(3))), "cannot pickle 'generator' object"),
        (lambda: Itself(), "its copy shares linear.weight with it"),
        (lambda: SharesAParameter(), "its copy shares linear.weight with it"),
    ],
)
def test_what_cannot_be_copied_says_why_in_one_line(model, reason):
    with pytest.raises(UncopyableError, match=reason) as caught:
        copy_of(model())
    assert "\n" not in str(caught.value)


def test_the_double_has_parameters_buffers_and_stored_tensors_in_float64():
    model = Model(mask=torch.ones(4), parts=[torch.ones(2), (torch.ones(2),)], ids=torch.arange(3))
    model.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    sample = inputs()
    double = double_of(model, sample)
    assert double.linear.weight.dtype == double.scale.dtype == torch.float64
    assert double.phase.dtype == torch.complex128
    assert double.mask.dtype == double.parts[0].dtype == double.parts[1][0].dtype == torch.float64
    assert double.ids.dtype == torch.int64
    assert model.linear.weight.dtype == model.mask.dtype == torch.float32
    x = sample.args[0].double()
    exact = (x @ model.linear.weight.double().t() + model.linear.bias.double()) * model.scale
    assert torch.allclose(double(x), exact, rtol=1e-14, atol=1e-14)


def test_the_double_is_fresh_in_the_mode_of_the_model_and_leaves_the_generator():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    sample, before = inputs(), torch.get_rng_state()
    double = double_of(model, sample)
    assert torch.equal(torch.get_rng_state(), before)
    assert double.training
    assert double[1].training
    assert int(double[1].num_batches_tracked) == 0


class CastsInside(Model):
    def forward(self, x):
        return self.linear(x.float())


class AnotherFunction(Model):
    def forward(self, x):
        return super().forward(x) + torch.finfo(x.dtype).bits


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (CastsInside(), "it does not run in float64: RuntimeError: "),
        (AnotherFunction(), "it is another function in float64: the output: error "),
    ],
)
def test_why_there_is_no_double(model, reason):
    found = double_of(model, inputs())
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert "\n" not in found


def test_a_double_of_half_precision_may_differ_as_far_as_that_rounds():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(6))).bfloat16()
    assert isinstance(double_of(model, Sample((torch.randn(3, 32).bfloat16(),))), nn.Module)
