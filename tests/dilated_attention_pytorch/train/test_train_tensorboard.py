import sys

import pytest

from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.tensorboard import TensorBoard

pytest.importorskip("tensorboard")


def row(step, bits, **more):
    return {"step": step, "train_bits_per_byte": bits, "learning_rate": 1e-3 * step, **more}


def written(folder, rows):
    board = TensorBoard(folder)
    for each in rows:
        board.add(each)
    return board


def scalars_of(folder):
    """As TensorBoard reads them: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    assert read.Tags()["tensors"] == []
    return {tag: [(x.step, x.value) for x in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_scalars_are_those_of_the_metrics(tmp_path):
    rows = [row(1, 8.25), row(2, 4.5, val_bits_per_byte=5.0), row(3, 2.125)]
    written(tmp_path / "tensorboard", rows).close()
    scalars = scalars_of(tmp_path / "tensorboard")
    assert scalars.pop("learning_rate") == [(s, pytest.approx(1e-3 * s)) for s in (1, 2, 3)]
    assert scalars == {
        "train_bits_per_byte": [(1, 8.25), (2, 4.5), (3, 2.125)],
        "val_bits_per_byte": [(2, 5.0)],
    }


def test_rows_can_be_read_before_the_end(tmp_path):
    board = written(tmp_path, [row(1, 8.0)])
    assert scalars_of(tmp_path)["train_bits_per_byte"] == [(1, 8.0)]
    board.close()


def test_resumed_run_continues_from_its_checkpoint(tmp_path):
    written(tmp_path, [row(step, 8.0 / step) for step in range(1, 6)]).close()
    written(tmp_path, [row(4, 1.5), row(5, 1.25), row(6, 1.0)]).close()
    assert scalars_of(tmp_path)["train_bits_per_byte"] == [
        *((1, 8.0), (2, 4.0), (3, pytest.approx(8 / 3))),
        *((4, 1.5), (5, 1.25), (6, 1.0)),
    ]


def test_run_without_a_step_leaves_nothing(tmp_path):
    TensorBoard(tmp_path / "tensorboard").close()
    assert not (tmp_path / "tensorboard").exists()


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(CommandError) as caught:
        TensorBoard(tmp_path)
    assert str(caught.value) == (
        "--tensorboard needs TensorBoard, which is not installed: pip install tensorboard"
    )
