"""Loss scaling and the optimizer's options; what a whole run does is in test_train_command.py."""

import io
import itertools
import math

import pytest
import torch

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.data import read_corpus
from dilated_attention_pytorch.train.loop import (
    NonFiniteLossError,
    make_optimizer,
    make_scaler,
    training_steps,
)
from dilated_attention_pytorch.train.options import TrainOptions

SHAPE = {"seq_len": 64, "batch_size": 2, "eval_windows": 2, "eval_every": 100}


def small_model():
    torch.manual_seed(0)
    return LongNetLM(
        LongNetConfig(
            embed_dim=16, num_layers=1, num_heads=2, segment_lengths=(16, 64), dilation_rates=(1, 2)
        )
    )


def copy_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def trained(text, scaler=None, model=None, **changes):
    """Rows of metrics without the speed, and the weights."""
    options, model = TrainOptions(**SHAPE | {"steps": 4} | changes), model or small_model()
    corpus = read_corpus(str(text), options.seq_len)
    rows = list(training_steps(model, make_optimizer(model, options), corpus, options, 0, scaler=scaler))
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in rows], copy_of(model)


def test_betas_are_the_optimizers():
    model = small_model()
    for group in make_optimizer(model, TrainOptions(beta1=0.7, beta2=0.99)).param_groups:
        assert group["betas"] == (0.7, 0.99)


def test_only_float16_is_scaled():
    cpu = torch.device("cpu")
    assert make_scaler(TrainOptions(dtype="float32"), cpu) is None
    assert make_scaler(TrainOptions(dtype="bfloat16"), cpu) is None
    scaler = make_scaler(TrainOptions(dtype="float16"), cpu)
    assert scaler.is_enabled()
    assert scaler.get_scale() == 2**16


def test_rows_say_how_much_text_a_step_took(text):
    rows, _ = trained(text, steps=2, batch_size=3)
    assert [row["bytes"] for row in rows] == [3 * 64, 3 * 64]


def test_scaling_by_a_power_of_two_changes_nothing(text):
    rows, weights = trained(text)
    scaled_rows, scaled = trained(text, torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3))
    assert same(weights, scaled)
    assert [row.pop("loss_scale") for row in scaled_rows] == [1024, 1024, 2048, 2048]
    assert scaled_rows == rows


def test_step_with_gradients_that_overflow_is_skipped_and_the_scale_halved(text):
    model, weights = small_model(), []
    with torch.no_grad():
        model.head.weight.mul_(1e4)  # gradients well above 1, which the highest scale takes out of range
    start = copy_of(model)

    class Watched(torch.amp.GradScaler):
        def update(self, *arguments):
            super().update(*arguments)
            weights.append(copy_of(model))

    rows, _ = trained(text, Watched("cpu", init_scale=2.0**127), model, steps=14)
    scales = [row["loss_scale"] for row in rows]
    skipped = [same(before, after) for before, after in itertools.pairwise([start, *weights])]
    assert skipped[0]
    assert not all(skipped)
    assert scales == [2.0 ** (127 - number) for number in itertools.accumulate(skipped)]
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_float16_trains(text):
    scaler = make_scaler(TrainOptions(dtype="float16"), torch.device("cpu"))
    rows, weights = trained(text, scaler, dtype="float16")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    expected = [row["train_bits_per_byte"] for row in trained(text)[0]]
    assert [row["train_bits_per_byte"] for row in rows] == pytest.approx(expected, rel=1e-3)


class Steep(torch.nn.Module):
    """A loss that is finite, and a gradient that is not."""

    def __init__(self, logit):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.logit = logit

    def forward(self, tokens, positions, attend):
        # The derivative of a root at 0 is infinite.
        logits = self.weight.sqrt().expand(*tokens.shape, 256) * torch.linspace(0, 1, 256)
        return logits + self.logit


def test_gradients_that_stay_infinite_are_divergence(text):
    model = Steep(0.0)
    with pytest.raises(
        NonFiniteLossError, match=r"^not finite at step 20: loss 5.545\d*, gradient norm nan|inf$"
    ):
        trained(text, torch.amp.GradScaler("cpu"), model, steps=30)
    assert model.weight.item() == 0
    with pytest.raises(NonFiniteLossError, match=r"^not finite at step 1: "):
        trained(text, None, model)


def test_loss_that_is_not_finite_is_divergence_at_once(text):
    with pytest.raises(NonFiniteLossError, match=r"^not finite at step 1: loss nan, "):
        trained(text, torch.amp.GradScaler("cpu"), Steep(math.inf))


def test_scale_goes_on_from_what_was_saved(text):
    options = TrainOptions(**SHAPE, steps=8)
    corpus = read_corpus(str(text), options.seq_len)

    def scales(scaler, done):
        model = small_model()
        optimizer = make_optimizer(model, options)
        for row in training_steps(model, optimizer, corpus, options, done, scaler=scaler):
            yield row["loss_scale"]

    whole = list(scales(torch.amp.GradScaler("cpu", growth_interval=3), 0))
    first, second = (torch.amp.GradScaler("cpu", growth_interval=3) for _ in range(2))
    parted = list(itertools.islice(scales(first, 0), 5))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert parted + list(scales(second, 5)) == whole == [2.0**16] * 2 + [2.0**17] * 3 + [2.0**18] * 3
