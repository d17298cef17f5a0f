import copy
import math
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernel_pytorch.advice.analysis.lengths import fits, greatest_length, length_fact, lengths_facts
from kernel_pytorch.advice.analysis.memory import peak_memory, predict_peak, step_peak
from kernel_pytorch.advice.facts import Fact, Options
from kernel_pytorch.advice.inputs import parse_input
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.redraw import Inputs
from kernel_pytorch.advice.sample import Sample

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self, fused, width=64):
        super().__init__()
        self.inputs, self.output, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, -1))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT * q.shape[-1] ** -0.5
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            mixed = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        return self.output(mixed.transpose(1, 2).flatten(-2))


def convolutions(width, layers):
    first = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(
        *first,
        *(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(layers)
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def encoder(batch_first):
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(500, 64), nn.Linear(64, 500, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return {"logits": self.head(F.layer_norm(self.tokens(ids), (64,)))}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x, scale=1.0):
        return x + scale * self.down(F.silu(self.up(self.norm(x))))


class ByHand(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t() + self.bias


class Transposed(nn.Linear):
    def __init__(self):
        super().__init__(64, 256)

    def forward(self, x):
        return super().forward(x.transpose(0, 1))


MODELS = {
    "MLP": (lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)), (4, 128, 64)),
    "attention by hand": (lambda: Attention(False), (2, 256, 64)),
    "attention by hand, odd length": (lambda: Attention(False), (2, 111, 64)),
    "fused attention": (lambda: Attention(True), (2, 256, 64)),
    "fused attention, odd length": (lambda: Attention(True), (3, 63, 64)),
    "fused attention, long": (lambda: Attention(True), (1, 1024, 64)),
    "encoder": (lambda: encoder(batch_first=False), (128, 2, 64)),
    "residual": (Residual, (8, 64, 64)),
    "embedding": (TiedEmbedding, (4, 64)),
    "GRU cell": (lambda: nn.GRUCell(64, 64), (32, 64)),
    "GRU": (lambda: nn.GRU(32, 64, batch_first=True), (8, 63, 32)),
    "linear by hand": (lambda: ByHand(64, 256), (8, 64, 64)),
    "linear of a transposed input": (Transposed, (8, 64, 64)),
}


def sample_of(shape):
    return Sample((torch.randint(500, shape) if len(shape) == 2 and shape[0] == 4 else torch.randn(shape),))


def measured(model, sample, training, optimizer=None):
    """Two steps of training from the start, or a call."""
    task = Task(model=copy.deepcopy(model), sample=sample, options=Options(training=training))
    steps = optimizer(task.model.parameters()) if optimizer else None

    def run():
        for _ in range(2 if training else 1):
            task.step(task.model, sample, steps)

    return peak_memory(run, CPU)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_prediction_is_the_measured_peak(name, training):
    make, shape = MODELS[name]
    model, sample = make().train(training), sample_of(shape)
    predicted = predict_peak(model, sample, training=training)
    assert (predicted.basis, predicted.at_least) == ("predicted", False)
    assert predicted.value == pytest.approx(measured(model, sample, training), rel=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.AdamW(p, foreach=True),
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
    ids=["AdamW", "AdamW foreach", "AdamW fused", "SGD"],
)
def test_an_optimizers_state_counts(optimizer):
    model, sample = nn.Sequential(nn.Linear(128, 512), nn.Linear(512, 128)), Sample((torch.randn(2, 128),))
    predicted = predict_peak(model, sample, training=True, optimizer=optimizer)
    assert predicted.value == pytest.approx(measured(model, sample, True, optimizer), rel=0.02)
    assert predicted.value > 1.5 * predict_peak(model, sample, training=True).value


def test_the_step_of_a_warm_model_has_the_predicted_peak():
    model, sample = Residual(), Sample((torch.randn(4, 16, 64),))
    task = Task(model=model, sample=sample, options=Options(training=True))
    optimizer = torch.optim.AdamW(model.parameters())
    task.step(model, sample, optimizer)
    predicted = predict_peak(model, sample, training=True, optimizer=lambda p: torch.optim.AdamW(p))
    peak = step_peak(lambda: task.step(model, sample, optimizer), model, optimizer, CPU)
    assert predicted.value == pytest.approx(peak, rel=0.02)
    assert peak > 3 * sum(p.nbytes for p in model.parameters())  # gradients and two moments


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_convolutions_need_at_least_what_is_predicted(training):
    model, sample = convolutions(32, 3).train(training), Sample((torch.randn(4, 3, 32, 32),))
    predicted = predict_peak(model, sample, training=training)
    assert predicted.at_least
    assert "convolutions" in predicted.why
    assert 0.9 < predicted.value / measured(model, sample, training) < 1.1


@pytest.mark.parametrize(
    ("model", "shape", "why"),
    [
        (nn.LSTM(32, 64, batch_first=True), (4, 64, 32), "LSTM"),
        (encoder(batch_first=True).eval(), (2, 128, 64), "the encoder layers' fast path"),
    ],
    ids=["LSTM", "encoder"],
)
def test_operators_that_hide_memory_are_named(model, shape, why):
    sample = Sample((torch.randn(shape),))
    predicted = predict_peak(model, sample)
    assert predicted.at_least
    assert predicted.why == f"allocate inside what is not seen: {why}"
    assert predicted.value < measured(model, sample, False)


def test_an_operator_that_someone_else_wrote_may_hide_memory():
    @torch.library.custom_op("advice_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    twice.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def forward(self, x):
            return twice(x)

    predicted = predict_peak(Custom(), Sample((torch.randn(256),)))
    assert (predicted.value, predicted.at_least) == (1024, True)
    assert "advice_tests::twice" in predicted.why


def test_hundreds_of_gigabytes_are_predicted_without_a_megabyte():
    model = Attention(False)
    task = Task(model=model, sample=Sample((torch.randn(1, 8, 64),)))
    found = []
    used = peak_memory(lambda: found.append(length_fact(task, 65_536, 8 << 30)), CPU)
    assert found[0].peak.value == pytest.approx(
        4 * 65_536**2 * (3 * 4 + 1 / 4), rel=0.02
    )  # scores, 3 times, a mask
    assert found[0].fits is False
    assert used < 1 << 20


def test_the_model_its_inputs_and_the_generator_stay():
    model, sample = nn.Sequential(nn.Linear(8, 8), nn.Dropout()), Sample((torch.randn(2, 8),))
    values = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    predict_peak(model, sample, training=True, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_with_a_lock_is_like_any_other():
    plain, locked = nn.Linear(8, 8), nn.Linear(8, 8)
    locked.lock = threading.Lock()
    inputs = torch.randn(4, 8)
    assert predict_peak(locked, inputs) == predict_peak(plain, inputs) == Fact(value=128, basis="predicted")


class Asks(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("no such mask")


@pytest.mark.parametrize(
    ("model", "why"), [(Asks(), "_local_scalar_dense"), (Fails(), "ValueError: no such mask")]
)
def test_what_cannot_be_predicted_says_why(model, why, capfd, caplog):
    predicted = predict_peak(model, Sample((torch.randn(3),)))
    assert (predicted.value, predicted.basis) == (None, None)
    assert predicted.why.startswith("not predicted: ")
    assert why in predicted.why
    assert "test_memory.py" in predicted.why
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_loss_of_ones_own_counts():
    def loss(outputs, inputs):
        return (outputs - inputs).square().sum(0).mean()

    model, sample = nn.Linear(64, 64), Sample((torch.randn(256, 64),))
    default = predict_peak(model, sample, training=True)
    own = predict_peak(model, sample, training=True, loss=loss)
    assert own.value > 0
    assert own.value != default.value


def test_facts_at_other_lengths():
    task = Task(
        model=Attention(False), sample=Sample((torch.randn(1, 32, 64),)), options=Options(lengths=(64, 512))
    )
    known, greatest = lengths_facts(task, 4 << 20)
    assert [fact.length for fact in known] == [64, 512]
    assert [fact.fits for fact in known] == [True, False]
    for fact in known:
        n = fact.length
        attention, linear = 2 * 2 * n * n * 64, 2 * n * 64 * 4 * 64
        assert fact.flops.value == attention + linear
        assert fact.attention_share.value == pytest.approx(attention / (attention + linear))
        inputs = Sample((torch.randn(1, n, 64),))
        assert fact.peak.value == pytest.approx(measured(task.model, inputs, False), rel=0.02)
    assert 64 < greatest.value < 512
    over = round(greatest.value * 1.05)
    assert measured(task.model, Sample((torch.randn(1, int(greatest.value), 64),)), False) <= 4 << 20
    assert measured(task.model, Sample((torch.randn(1, over, 64),)), False) > 4 << 20


def test_a_function_of_the_users_makes_inputs_of_a_length_without_memory():
    task = Task(
        model=Attention(True),
        sample=Sample((torch.randn(1, 8, 64),)),
        redraw=lambda length, seed: Sample((torch.randn(1, length, 64),)),
    )
    found = []
    used = peak_memory(lambda: found.append(length_fact(task, 1 << 20, None)), CPU)
    assert found[0].peak.value > 1 << 28
    assert used < 1 << 20


def test_lengths_that_cannot_be_made_say_why():
    task = Task(model=convolutions(4, 1), sample=Sample((torch.randn(1, 3, 8, 8),)))
    fact = length_fact(task, 512, 1 << 30)
    assert "cannot be given the length 512" in fact.peak.why
    assert (fact.flops.value, fact.fits) == (None, None)
    assert greatest_length(task, 1 << 30).why == "the inputs have no length"


@pytest.mark.parametrize(
    ("peak", "limit", "answer"),
    [
        (Fact(value=10, basis="predicted"), 10, True),
        (Fact(value=11, basis="predicted"), 10, False),
        (Fact(value=9, basis="predicted", at_least=True), 10, None),
        (Fact(value=11, basis="predicted", at_least=True), 10, False),
        (Fact(why="unknown"), 10, None),
        (Fact(value=9, basis="predicted"), None, None),
    ],
)
def test_fits(peak, limit, answer):
    assert fits(peak, limit) is answer


def searched(peak_of, limit, *, start=100, deadline=math.inf, seconds=1.0, at_least=False):
    """The greatest length with a false clock; each prediction takes ``seconds``."""
    task = Task(model=nn.Linear(1, 1), sample=Sample((torch.zeros(1, start, 1),)))
    now = 0.0

    def predicted(length):
        nonlocal now
        now += seconds
        value = peak_of(length)
        return (
            Fact(why="it fails") if value is None else Fact(value=value, basis="predicted", at_least=at_least)
        )

    return greatest_length(task, limit, deadline=deadline, clock=lambda: now, predicted=predicted), now


@pytest.mark.parametrize("start", [1, 3, 100, 5000])
@pytest.mark.parametrize("true", [1, 2, 50, 777, 4096, 100_000])
@pytest.mark.parametrize("power", [1, 2])
def test_the_greatest_length_is_found_up_to_a_64th(start, true, power):
    found, predictions = searched(lambda length: length**power, true**power, start=start)
    assert true - true / 64 - 1 <= found.value <= true
    assert (found.basis, found.at_least, found.why) == ("predicted", False, "")
    assert predictions <= 36


def test_no_length_fits():
    assert searched(lambda length: 10 + length, 5)[0].value == 0


def test_every_length_fits():
    found, _ = searched(lambda length: 1, 5)
    assert (found.value, found.at_least, found.why) == ((1 << 24) - 1, True, "no limit was found")


def test_the_search_stops_at_its_deadline():
    found, now = searched(lambda length: length, 100_000, deadline=5.5)
    assert now == 6.0
    assert (found.at_least, found.why) == (True, "the search stopped at its deadline")
    assert 100 < found.value < 100_000
    assert searched(lambda length: length, 100, deadline=-1)[0].why == "no time was left"


def test_a_length_at_which_the_model_fails_ends_the_search():
    found, _ = searched(lambda length: length if length < 500 else None, 100_000)
    assert (found.value, found.at_least, found.why) == (400, True, "length 800: it fails")
    assert searched(lambda length: None, 5)[0].why == "it fails"


def test_what_is_at_least_as_high_gives_a_length_at_most():
    found, _ = searched(lambda length: length, 777, at_least=True)
    assert not found.at_least
    assert found.why.startswith("at most")


def test_an_unknown_limit():
    assert searched(lambda length: length, None)[0].why == "the memory limit is unknown"


@pytest.mark.parametrize("texts", [("randn(2, 8, 16)",), ("randn(2, 8, 16)", "mask=ones(2, 8, dtype=bool)")])
def test_inputs_of_the_command_have_peaks_at_other_lengths(texts):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x, mask=None):
            return self.linear(x if mask is None else x * mask[..., None])

    inputs = Inputs([parse_input(text) for text in texts])
    sample = inputs.make(None, 0)
    task = Task(model=Masked(), sample=sample, options=Options(lengths=(4, 32)), redraw=inputs.redraw)
    facts, greatest = lengths_facts(task, 1 << 20)
    assert [fact.length for fact in facts] == [4, 32]
    assert [fact.peak.basis for fact in facts] == ["predicted"] * 2
    assert facts[1].peak.value == 8 * facts[0].peak.value > 0
    assert greatest.value is not None
