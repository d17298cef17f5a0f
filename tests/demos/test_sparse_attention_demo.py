"""The demo of sparse attention: a short run, masks and counts by brute force, and what a wrong kind does."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demos import sparse_attention as demo
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch import LongNetConfig

ROOT = Path(__file__).parents[2]
NAMES = ["dense", "window", "blocks", "dilated"]


def grid(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n)[:, None], torch.arange(n)[None]


def counts_of(kind: demo.Kind, n: int) -> torch.Tensor:
    return kind.seen(*grid(n)).expand(demo.HEADS, n, n)


def uncompiled(q, k, v, *, block_mask):
    """What FlexAttention computes, without its compilation."""
    return scaled_dot_product_attention(q, k, v, attn_mask=block_mask.mask_mod(0, 0, *grid(q.shape[2])))


def twice_the_gradient(q, k, v, **options):
    """The right output, and the wrong gradient of ``v`` where there is a mask."""
    v = 2 * v - v.detach() if "attn_mask" in options else v
    return scaled_dot_product_attention(q, k, v, **options)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse_attention")
    command = [sys.executable, "demos/sparse_attention.py", "--quick", "--output", str(folder)]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads((folder / "sparse_attention.json").read_text()), folder


def test_quick_run_times_every_kind(quick):
    _, record, _ = quick
    timings = record["timings"]
    assert [(t["equal"], t["length"], t["kind"]) for t in timings] == [
        (equal, n, name) for equal in (True, False) for n in (1024, 2048) for name in NAMES[1:]
    ]
    for t in timings:
        kinds = dict(zip(NAMES, demo.make_kinds(t["length"], equal=t["equal"]), strict=True))
        offered = [int(counts_of(kinds[name], t["length"]).sum()) for name in ("dense", t["kind"])]
        assert t["offered"] == offered
        assert 0 < t["low"] <= t["gain"] <= t["high"]
        assert t["gain"] == t["first_s"] / t["second_s"]
        assert min(t["peak_bytes"]) >= 4 * t["length"] * demo.HEADS * demo.HEAD_DIM  # the output


def test_quick_run_scores_every_kind(quick):
    output, record, folder = quick
    scores = record["scores"]
    assert [(s["task"], s["kind"]) for s in scores] == [(t, k) for t in ("copying", "recall") for k in NAMES]
    for s in scores:
        asked, right = (torch.tensor(s[name]) for name in ("asked", "right"))
        assert asked.shape == (3, demo.BINS)
        assert ((right >= 0) & (right <= asked)).all()
        assert int(asked.sum()) == 5 * demo.BATCH * demo.TASKS[s["task"]]
        assert s["accuracy"] == pytest.approx(float(right.sum() / asked.sum()))
    verdicts = re.findall(
        r"(\w+): dilated is (ahead of|behind|level with) (\w+), ([+-][\d.]+) points", output
    )
    by_kind = {(s["task"], s["kind"]): s["accuracy"] for s in scores}
    assert len(verdicts) == 6
    for task, word, kind, points in verdicts:
        gap = 100 * (by_kind[task, "dilated"] - by_kind[task, kind])
        assert float(points) == pytest.approx(gap, abs=0.051)
        assert word != ("behind" if gap > 0 else "ahead of")
    assert (folder / "sparse_attention.png").read_bytes().startswith(b"\x89PNG")


def seen_by_rule(name: str, n: int, window: int, chosen: int, block: int, scale: int) -> torch.Tensor:
    """How often each head offers each pair, ``[h, n, n]``, pair by pair."""
    branches = [
        (w // scale, r)
        for w, r in zip(LongNetConfig.segment_lengths, LongNetConfig.dilation_rates, strict=True)
    ]
    counts = torch.zeros(demo.HEADS, n, n, dtype=torch.int64)
    for q in range(n):
        own = q // block
        steps = [-(-i * own // chosen) for i in range(1, chosen + 1)] if own > chosen else range(1, own + 1)
        for k in range(q + 1):
            for h in range(demo.HEADS):
                counts[h, q, k] = {
                    "dense": 1,
                    "window": int(q - k < window),
                    "blocks": int(k // block == own or own - k // block in steps),
                    "dilated": sum(q // w == k // w and q % w % r == k % w % r == h % r for w, r in branches),
                }[name]
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_their_pairs(name):
    n, scale = 77, 64
    kind = demo.make_kinds(n, equal=False, scale=scale, training=True)[NAMES.index(name)]
    right = seen_by_rule(name, n, demo.WINDOW // scale, demo.CHOSEN, demo.BLOCK // scale, scale)
    assert torch.equal(counts_of(kind, n).long(), right)
    assert kind.pairs == int(right.sum())


@pytest.mark.parametrize("n", [1024, 4096, 32768])
def test_sparse_kinds_offer_equally_many_pairs(n):
    _, window, blocks, dilated = demo.make_kinds(n)
    assert window.pairs == pytest.approx(dilated.pairs, rel=0.001)
    assert blocks.pairs == pytest.approx(dilated.pairs, rel=0.1)


@pytest.mark.parametrize("n", [333, 1024])
@pytest.mark.parametrize("name", ["window", "blocks"])
def test_block_masks(name, n):
    seen = demo.make_kinds(n)[NAMES.index(name)].seen
    found = demo.block_mask(seen, n)
    some, full = (torch.zeros_like(found.to_dense()[0, 0]).bool() for _ in range(2))
    for row, queries in enumerate(torch.arange(n).split(demo.BLOCK)):
        for column, keys in enumerate(torch.arange(n).split(demo.BLOCK)):
            block = seen(queries[:, None], keys[None])
            some[row, column], full[row, column] = block.any(), block.all()
    listed = torch.zeros_like(full)
    for row, number in enumerate(found.full_kv_num_blocks[0, 0]):
        listed[row, found.full_kv_indices[0, 0, row, :number].long()] = True
    assert torch.equal(found.to_dense()[0, 0].bool(), some)
    assert not (listed & ~full).any()
    if n % demo.BLOCK == 0:  # else the last queries are counted as if there were more
        assert torch.equal(listed, full)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [128, 77])
def test_forms_for_training(name, n):
    kind = demo.make_kinds(n, scale=64, training=True)[NAMES.index(name)]
    assert demo.error_of(kind, n, gradients=True) <= demo.LIMIT
    shifted = kind._replace(attend=lambda *qkv: kind.attend(*qkv).roll(1, 1))
    assert demo.error_of(shifted, n) > 0.1
    steep = kind._replace(attend=lambda q, k, v: kind.attend(q, k, 2 * v - v.detach()))
    assert demo.error_of(steep, n) <= demo.LIMIT
    assert demo.error_of(steep, n, gradients=True) > 0.1


@pytest.mark.parametrize("wrong", ["window, 999", "dilated, 999", "window, 128"])
def test_a_wrong_kind_ends_with_1_and_is_not_timed(wrong, monkeypatch, tmp_path):
    attend = demo.dilated_attention
    of_flex, of_dilated = 1 + 1e-5 * (wrong == "window, 999"), 1 + 1e-5 * (wrong == "dilated, 999")
    monkeypatch.setattr(demo, "flex", lambda: lambda *a, **b: uncompiled(*a, **b) * of_flex)
    monkeypatch.setattr(demo, "dilated_attention", lambda *a, **b: attend(*a, **b) * of_dilated)
    monkeypatch.setattr(demo, "sdpa", twice_the_gradient)
    monkeypatch.setattr(demo, "measure", lambda *a, **b: pytest.fail("timed"))
    monkeypatch.setattr(sys, "argv", ["sparse_attention.py", "--quick", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=rf"^wrong: {wrong} tokens: error \d.\de[+-]\d\d$"):
        demo.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pairs", demo.TASKS.values(), ids=demo.TASKS)
def test_questions_are_answered_by_an_earlier_pair(pairs):
    n = 64
    tokens, at, answer, back = demo.draw_questions(n, pairs, torch.Generator().manual_seed(0))
    for row, text in enumerate(tokens.tolist()):
        assert sum(token >= 64 for token in text) == pairs
        assert sum(16 <= token < 32 for token in text) == pairs
        assert min(text) >= 16
        for place, word, distance in zip(
            at[row].tolist(), answer[row].tolist(), back[row].tolist(), strict=True
        ):
            key = text[place] - 16
            (source,) = (i for i in range(place) if (text[i] - 64) // 16 == key and text[i] >= 64)
            assert (text[source] - 64) % 16 == word
            assert place - source == distance
    if pairs > 1:
        assert back.min() == 1
        assert back.max() > 0.9 * n


def test_questions_by_the_layers_that_they_need(capsys):
    dense, window, _, dilated = demo.make_kinds(64, scale=128, training=True)
    asked = {
        k.name: torch.tensor(demo.learn("recall", k, 64, 1, 4)["asked"]) for k in (dense, window, dilated)
    }
    assert torch.equal(asked["dense"][0], asked["dilated"].sum(0))  # the same questions
    assert asked["dense"][1:].sum() == 0
    reach = int(window.seen(*grid(64))[-1].sum()) - 1
    farthest = 2 * reach * demo.BINS // 64
    assert asked["window"][0].sum() > 0
    assert asked["window"][1].sum() > 0
    assert asked["window"][:2, farthest + 1 :].sum() == 0
    assert asked["window"][2, : reach * demo.BINS // 64].sum() == 0
    assert "one layer" in capsys.readouterr().out


def test_each_kind_starts_from_the_same_parameters(monkeypatch):
    make, started = demo.LongNetLM, []

    def recorded(shape):
        model = make(shape)
        started.append(copy.deepcopy(model.state_dict()))
        return model

    monkeypatch.setattr(demo, "LongNetLM", recorded)
    for kind in demo.make_kinds(64, scale=128, training=True):
        demo.learn("copying", kind, 64, 1, 1)
    assert len(started) == 4
    assert all(torch.equal(started[0][name], other[name]) for other in started for name in started[0])
