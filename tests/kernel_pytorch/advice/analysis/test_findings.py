"""Findings and remedies of recorded facts and observations."""

from __future__ import annotations

import subprocess
import sys

import pytest
from advice_facts import facts

from kernel_pytorch.advice.analysis import remedies
from kernel_pytorch.advice.analysis.findings import findings
from kernel_pytorch.advice.analysis.observations import (
    Differing,
    GraphBreak,
    HostSync,
    Observations,
    PythonLoop,
    RebuiltConstant,
    Recompile,
    RepeatedCopy,
)
from kernel_pytorch.advice.facts import AttentionSite, Fact, LengthFacts, ModuleCost, OperatorCost

NOTHING = Observations()


def only(found):
    assert len(found) == 1, found
    return found[0]


def test_a_clean_model_has_no_findings():
    assert findings(facts(), NOTHING) == ()


def test_pure_modules_load_no_torch():
    program = (
        "import sys; import kernel_pytorch.advice.analysis.findings, kernel_pytorch.advice.analysis.source; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


SITE = AttentionSite(
    place="model.py:31-33",
    paths=("a", "b"),
    fused=False,
    scores_bytes=16_777_216,
    call="F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)",
)
MODULES = tuple(
    ModuleCost(path=path, kind="Attention", place="", calls=1, seconds=seconds, flops=None)
    for path, seconds in (("", 0.1), ("a", 0.03), ("b", 0.028))
)


def test_attention_by_hand_names_the_call_to_write():
    found = only(findings(facts(attention=(SITE,), modules=MODULES), NOTHING))
    assert (found.kind, found.place) == ("attention by hand", "model.py:31-33")
    assert found.cost == "2 modules, 16.8 MB of scores each, in modules that take 58% of the time"
    assert found.remedy == f"write {SITE.call}"


def test_the_time_of_attention_is_left_out_where_it_was_not_measured():
    found = only(findings(facts(attention=(SITE,), modules=MODULES[:2]), NOTHING))
    assert found.cost == "2 modules, 16.8 MB of scores each"


def test_attention_that_is_fused_is_no_finding_unless_it_says_why_it_is_slow():
    fused = AttentionSite(place="m.py:1", paths=("a",), fused=True, scores_bytes=0, call="F.sdpa")
    assert findings(facts(attention=(fused,)), NOTHING) == ()
    slow = AttentionSite(
        place="m.py:1", paths=("a",), fused=True, scores_bytes=10, call="F.sdpa", why="the inputs are 3-D"
    )
    found = only(findings(facts(attention=(slow,)), NOTHING))
    assert found.kind == "attention unfused"
    assert "the inputs are 3-D" in found.cost


@pytest.mark.parametrize("training", [False, True])
def test_a_call_beyond_the_memory_limit(training):
    known = facts(training=training, peak=9e9, memory_limit=8_000_000_000, optimizer="AdamW fused")
    found = only(findings(known, NOTHING))
    assert found.kind == ("training will not fit" if training else "will not fit")
    assert found.cost == "a call needs 9 GB (measured) of 8 GB; the greatest length that fits is 16,384"
    assert ("checkpoint" in found.remedy) == training


def test_a_peak_that_cannot_be_measured_is_predicted():
    known = facts(peak=Fact(why="too much"), predicted_peak=Fact(value=9e9, basis="predicted", at_least=True))
    assert "at least 9 GB (predicted)" in only(findings(known, NOTHING)).cost


def test_the_first_length_that_does_not_fit():
    lengths = tuple(
        LengthFacts(
            length=length,
            peak=Fact(value=peak, basis="predicted"),
            flops=Fact(),
            attention_share=Fact(),
            fits=peak < 8e9,
        )
        for length, peak in ((8192, 30e9), (4096, 9e9), (2048, 3e9))
    )
    assert only(findings(facts(lengths=lengths), NOTHING)).cost.startswith("length 4,096 needs 9 GB")


def test_a_wait_at_a_graph_break_is_named_once():
    item = GraphBreak(place="m.py:3", cause="item", reason="r", statement="v = x.mean().item()")
    sync = HostSync(place="m.py:3", call=".item()", calls=4, statement="v = x.mean().item()")
    found = only(findings(facts(), Observations(breaks=(item,), syncs=(sync,))))
    assert found.kind == "graph break"
    assert "4 times a call" in found.cost
    assert found.remedy == "keep the tensor: x.mean() in place of x.mean().item()"


def test_a_loop_names_its_recompiles_and_its_time():
    loop = PythonLoop(
        place="m.py:10", last_line=12, operator="linear", calls=100, shape=(2, 16), over="slices"
    )
    inside = Recompile(place="m.py:11", cause="length", guard="g")
    outside = Recompile(place="m.py:13", cause="length", guard="g")
    operators = (OperatorCost(name="aten::addmm", calls=200, seconds=0.05, flops=None, bytes=None),)
    seen = Observations(loops=(loop,), recompiles=(inside, outside))
    recompiling, of_loop = findings(facts(operators=operators, call=0.1), seen)
    assert recompiling.place == "m.py:13"
    assert of_loop.cost == (
        "100 calls of linear with results of 2 x 16, about 25% of the time in that operator alone; "
        "torch.compile compiles again for each length"
    )


def test_bytes_copied_are_time_at_the_measured_bandwidth():
    copy = RepeatedCopy(place="m.py:1", cause="stored", calls=1, bytes=60_000_000, name="w")
    found = only(findings(facts(call=0.1), Observations(copies=(copy,))))
    assert found.cost == "1 copy a call, 60 MB, at least 10% of the time: w is copied"
    assert found.remedy == "store w in this form, once, in __init__"


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW foreach", "SGD single"])
def test_slow_variants_of_optimizers(optimizer):
    seen = Observations(optimizer_place="train.py:7")
    found = only(findings(facts(training=True, optimizer=optimizer), seen))
    assert (found.kind, found.place) == ("slow optimizer", "train.py:7")
    assert found.remedy == f"{optimizer.split()[0]}(..., fused=True)"


@pytest.mark.parametrize("optimizer", ["AdamW fused", "Muon", ""])
def test_optimizers_without_a_faster_variant(optimizer):
    assert findings(facts(training=True, optimizer=optimizer), NOTHING) == ()


def test_threads_are_compared_with_whole_cpus():
    assert findings(facts(threads=2, granted_cpus=1.5), NOTHING) == ()
    assert findings(facts(threads=64, granted_cpus=None), NOTHING) == ()
    found = only(findings(facts(threads=2, granted_cpus=0.5), NOTHING))
    assert found.remedy == "torch.set_num_threads(1)"


@pytest.mark.parametrize(
    ("cause", "statement", "remedy"),
    [
        ("branch", "if x.sum() > 0:", "torch.where(x.sum() > 0, if_true, if_false)"),
        ("branch", "while x.max() > 1:", "torch.cond(x.max() > 1, "),
        ("branch", "y = a if x.any() else b", "torch.where(x.any(), "),
        ("print", "print('loss', x)", "if not torch.compiler.is_compiling(): print('loss', x)"),
        ("log", "LOG.info('%s', x)", "if not torch.compiler.is_compiling(): LOG.info('%s', x)"),
        ("item", "n = int((x > 0).sum())", "(x > 0).sum() in place of int((x > 0).sum())"),
        ("item", "", "keep the tensor"),
        ("item", "not ( python", "keep the tensor"),
        ("dynamic shape", "y = x[x > 0]", "torch.where(mask, x, 0)"),
        ("other", "y = f(x)", "use g"),
    ],
)
def test_remedies_name_the_code_to_write(cause, statement, remedy):
    found = GraphBreak(place="m.py:1", cause=cause, reason="r", hint="use g", statement=statement)
    assert remedy in remedies.of_break(found)


def test_the_remedy_of_a_recompile_names_the_attribute():
    found = Recompile(place="m.py:1", cause="value", guard="self.calls == 3")
    assert 'self.register_buffer("calls", torch.tensor(...))' in remedies.of_recompile(found)


def test_the_remedy_of_a_mask_is_not_that_of_a_table():
    mask, table = (
        RebuiltConstant(place="", operators=1, bytes=1, shape=(2, 2), statement=text)
        for text in ("m = torch.ones(n, n).tril()", "t = torch.sin(torch.arange(n))")
    )
    assert "is_causal" in remedies.of_constant(mask)
    assert "table" in remedies.of_constant(table)


@pytest.mark.parametrize(
    ("differing", "remedy"),
    [
        (Differing(place="", operator="dropout", difference=1), "training=self.training"),
        (Differing(place="", operator="dropout", difference=1, submodule="a.drop"), "a.drop is in training"),
        (Differing(place="", operator="randn_like", difference=1), "outside of the model"),
        (Differing(place="", operator="", difference=1), "keep no state"),
    ],
)
def test_remedies_of_results_that_differ(differing, remedy):
    assert remedy in remedies.of_differing(differing)
