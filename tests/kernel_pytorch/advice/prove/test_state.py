import copy
import random
import subprocess
import sys
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from kernel_pytorch.advice.prove.process_state import settings
from kernel_pytorch.advice.prove.state import preserved


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.mask = torch.ones(3)
        self.cache = {"seen": [1, 2]}
        self.recent = deque([1])
        self.names = {"a"}
        self.count = 0
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        return self.norm(self.linear(x))


def add_hook(model, found):
    model.linear.register_forward_hook(lambda *_: found.append(1))


CHANGES = {
    "a value": lambda m: m.linear.weight.data.add_(1),
    "a value to NaN": lambda m: m.norm.running_mean.fill_(float("nan")),
    "the memory": lambda m: setattr(m.linear.weight, "data", torch.zeros(3, 3)),
    "the dtype": lambda m: m.half(),
    "the shape": lambda m: setattr(m.linear.bias, "data", torch.zeros(7)),
    "a buffer": lambda m: m.register_buffer("running_mean", torch.ones(1)),
    "another buffer object": lambda m: setattr(m.norm, "running_var", torch.full((3,), 5.0)),
    "another parameter": lambda m: setattr(m.linear, "weight", nn.Parameter(torch.zeros(3, 3))),
    "a parameter gone": lambda m: delattr(m.linear, "bias"),
    "a new submodule": lambda m: m.add_module("extra", nn.Linear(2, 2)),
    "another submodule": lambda m: setattr(m, "linear", nn.Identity()),
    "modes": lambda m: m.eval(),
    "a mode": lambda m: m.norm.eval(),
    "requires_grad": lambda m: m.requires_grad_(False),
    "requires_grad on": lambda m: m.frozen.requires_grad_(True),
    "gradients": lambda m: m(torch.randn(4, 3)).sum().backward(),
    "gradients gone": lambda m: m.zero_grad(set_to_none=True),
    "gradients zeroed": lambda m: m.zero_grad(set_to_none=False),
    "a forward hook": lambda m: m.linear.register_forward_hook(lambda *_: None),
    "a pre-hook": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
    "a hook of a tensor": lambda m: m.linear.weight.register_hook(lambda g: g),
    "a hook after accumulation": lambda m: m.linear.weight.register_post_accumulate_grad_hook(lambda g: None),
    "a mark for the compiler": lambda m: m.compile(backend="eager"),
    "a stored tensor": lambda m: m.mask.zero_(),
    "a nested list": lambda m: m.cache["seen"].append(3),
    "a dict": lambda m: m.cache.clear(),
    "a deque": lambda m: m.recent.append(2),
    "a set": lambda m: m.names.add("b"),
    "a number": lambda m: setattr(m, "count", 5),
    "a method replaced": lambda m: setattr(m, "forward", lambda x: x),
    "a generator": lambda m: torch.rand(3, generator=m.generator),
}


def picture(model):
    """All that can be seen of a model, deep-copied, by an independent way."""
    state = {k: (v.dtype, v.tolist()) for k, v in model.state_dict().items()}
    tensors = {
        name: (
            id(p),
            p.requires_grad,
            p.data_ptr(),
            None if p.grad is None else (id(p.grad), p.grad.tolist()),
        )
        for name, p in model.named_parameters()
    }
    hooks = {
        (name, kind): list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in vars(module)
        if kind.endswith("hooks")
    }
    of_tensors = [
        [list(getattr(p, kind, None) or {}) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")]
        for p in model.parameters()
    ]
    modules = [
        (name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()
    ]
    own = copy.deepcopy((model.cache, model.recent, model.names, model.count, model.mask.tolist()))
    compiled = [module._compiled_call_impl for module in model.modules()]
    return (state, tensors, hooks, of_tensors, modules, own, compiled, model.generator.get_state().tolist())


def trained():
    torch.manual_seed(0)
    model = Model()
    model(torch.randn(4, 3)).square().sum().backward()
    model.linear.weight.register_hook(lambda gradient: gradient)
    return model


@pytest.mark.parametrize("name", CHANGES)
def test_the_model_is_as_before(name):
    model = trained()
    before = repr(picture(model))
    with preserved(model) as found:
        CHANGES[name](model)
        assert repr(picture(model)) != before
    assert repr(picture(model)) == before
    assert found.restored
    assert found.changed == ()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_passes_through_and_all_is_restored(error):
    model = trained()
    before = repr(picture(model))

    def run():
        with preserved(model):
            model.eval().half()
            torch.set_default_dtype(torch.float64)
            raise error

    with pytest.raises(error):
        run()
    assert repr(picture(model)) == before
    assert torch.get_default_dtype() == torch.float32


def test_nothing_is_reported_where_nothing_changed():
    model = trained()
    with preserved(model) as found:
        model.state_dict()
    assert (found.restored, found.changed) == ((), ())


def test_what_changed_is_named():
    model = trained()
    with preserved(model) as found:
        CHANGES["a value"](model)
        torch.set_default_dtype(torch.float64)
    assert found.restored == ("the default dtype", "linear.weight")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_optimizer_is_as_before(kind):
    model = trained()
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    for already in (False, True):  # its state is made by the first step
        before = copy.deepcopy(optimizer.state_dict())
        weights = model.linear.weight.tolist()
        with preserved(model, optimizer) as found:
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 5.0
            optimizer.zero_grad()
        assert repr(optimizer.state_dict()) == repr(before)
        assert model.linear.weight.tolist() == weights
        assert model.linear.weight.grad is not None
        assert found.changed == ()
        optimizer.step()
        assert already or optimizer.state


def test_a_lazy_module_that_was_run_cannot_be_restored():
    model = nn.LazyLinear(3)
    with preserved(model) as found:
        model(torch.ones(2, 4))
    assert [name for name in found.changed if "it was lazy, and has a shape now" in name]


def seen(name):
    """A setting now, written out in full."""
    value = next(setting for setting in settings() if setting.name == name).read()
    if isinstance(value, tuple):
        return repr([one.tolist() if hasattr(one, "tolist") else one for one in value])
    return repr(value.tolist() if isinstance(value, torch.Tensor) else value)


PROCESS = {
    "torch's generator": lambda: torch.rand(3),
    "random's generator": random.random,
    "numpy's generator": np.random.random,
    "the default dtype": lambda: torch.set_default_dtype(torch.float16),
    "the default device": lambda: torch.set_default_device("meta"),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(False) and torch.set_anomaly_enabled(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(False),
    "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "the fast path of attention": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "autocast's cache": lambda: torch.set_autocast_cache_enabled(False),
    "the hooks of all modules": lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast on cuda": lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "memory-efficient attention": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "unfused attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "cuDNN's attention": lambda: torch.backends.cuda.enable_cudnn_sdp(False),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
}


def test_every_setting_has_a_test():
    once = {"the number of interoperator threads", "the generators of CUDA"}
    assert {setting.name for setting in settings()} - once == set(PROCESS)


@pytest.mark.parametrize("name", PROCESS)
def test_the_state_of_the_process_is_as_before(name):
    model, before = nn.Linear(1, 1), seen(name)
    with preserved(model) as found:
        PROCESS[name]()
        assert seen(name) != before
    assert seen(name) == before
    assert found.restored == (name,)
    assert found.changed == ()


def test_the_filters_of_warnings_are_as_before():
    before = list(warnings.filters)
    with preserved(nn.Linear(1, 1)):
        warnings.simplefilter("ignore")
        assert warnings.filters != before
    assert warnings.filters == before


def in_a_fresh_process(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_threads_between_operators_can_be_set_once_and_are_reported():
    lines = in_a_fresh_process(
        "import torch\n"
        "from kernel_pytorch.advice.prove.state import preserved\n"
        "with preserved(torch.nn.Linear(1, 1)) as found:\n"
        "    torch.set_num_interop_threads(torch.get_num_interop_threads() + 3)\n"
        "print(found.restored, found.changed)\n"
    )
    assert lines == ["() ('the number of interoperator threads',)"]


def test_settings_of_the_compilers_are_as_before_and_not_loaded_for_it():
    lines = in_a_fresh_process(
        "import sys, torch\n"
        "from kernel_pytorch.advice.prove.state import preserved\n"
        "with preserved(torch.nn.Linear(1, 1)) as found:\n"
        "    print([name for name in sys.modules if name in ('torch._dynamo', 'torch._inductor')])\n"
        "    import torch._functorch.config as config\n"
        "    default = config.activation_memory_budget\n"
        "    config.activation_memory_budget = 0.25\n"
        "print(config.activation_memory_budget == default, found.restored)\n"
        "config.activation_memory_budget = 0.75\n"
        "solver = config.activation_memory_budget_solver\n"
        "with preserved(torch.nn.Linear(1, 1)) as found:\n"
        "    config.activation_memory_budget = 0.5\n"
        "    config.activation_memory_budget_solver = 'greedy'\n"
        "print(config.activation_memory_budget, config.activation_memory_budget_solver == solver)\n"
        "print(found.restored, found.changed)\n"
    )
    name = "torch._functorch.config.activation_memory_budget"
    assert lines == ["[]", f"True ('{name}',)", "0.75 True", f"('{name}', '{name}_solver') ()"]
