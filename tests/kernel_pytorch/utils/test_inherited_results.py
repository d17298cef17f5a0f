"""Facts and trials in the form of the inherited names: no figure is made up."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from advice_facts import facts
from advice_reports import COMPILE, FUSED, SDPA, report

from kernel_pytorch.advice.facts import AttentionSite, Expectation, Fact, Finding, Trial
from kernel_pytorch.advice.inherited import (
    ModelAnalysisResult,
    OptimizationRecommendation,
    OptimizationResult,
    analysis_fields,
    current,
    improvement,
    measured,
    recommendation,
)
from kernel_pytorch.advice.strategy.protocol import Base


class Quicker(Base):
    """Does it in half the time.

    By leaving out half of it.
    """

    name = "quicker"
    level = "balanced"
    needs = ("compiler", "package:magic")


HOPE = Expectation(gain=1.4, reason="it was so elsewhere")


def test_fields_are_those_that_were_inherited():
    inherited = [
        "model_info",
        "performance_bottlenecks",
        "optimization_opportunities",
        "current_optimizations",
        "overall_optimization_score",
        "improvement_potential",
    ]
    assert [field.name for field in fields(ModelAnalysisResult)][:6] == inherited
    own = {field.name for field in fields(OptimizationResult)} - set(inherited)
    assert {"optimized_model", "recommendations", "trials", "report"} < own
    names = [
        "optimization_type",
        "priority",
        "description",
        "implementation_steps",
        "expected_improvement",
        "difficulty",
        "code_example",
        "educational_notes",
    ]
    assert [field.name for field in fields(OptimizationRecommendation)][:8] == names


def test_score_and_potential_are_measured():
    found = ModelAnalysisResult(**analysis_fields(facts(call=0.1, bound=0.045, attained=0.45), (), (), "x"))
    assert found.overall_optimization_score == 0.45
    assert found.improvement_potential == pytest.approx(0.1 / 0.045)
    assert found.model_info["parameters"] == facts().parameters
    assert (found.facts, found.sample_input) == (facts(call=0.1, bound=0.045, attained=0.45), "x")


@pytest.mark.parametrize("missing", ["call", "bound"])
def test_what_was_not_measured_is_none(missing):
    unknown = Fact(why="it was not measured")
    found = ModelAnalysisResult(
        **analysis_fields(facts(**{missing: unknown, "attained": unknown}), (), (), None)
    )
    assert found.improvement_potential is None
    assert found.overall_optimization_score is None
    assert ModelAnalysisResult(**analysis_fields(facts(bound=0), (), (), None)).improvement_potential is None


def test_bottlenecks_are_findings_and_opportunities_what_applies():
    finding = Finding(kind="graph break", place="model.py:3", cost="2 graphs", remedy="leave out print")
    found = ModelAnalysisResult(**analysis_fields(facts(), (finding,), [(Quicker(), HOPE)], None))
    assert found.performance_bottlenecks == [
        {"kind": "graph break", "place": "model.py:3", "cost": "2 graphs", "remedy": "leave out print"}
    ]
    assert found.optimization_opportunities == [
        {"strategy": "quicker", "estimated_gain": 1.4, "reason": "it was so elsewhere"}
    ]


def test_what_is_done_already():
    site = AttentionSite(place="m.py:4", paths=("a",), fused=True, scores_bytes=0, call="F.sdpa(q, k, v)")
    assert current(facts()) == []
    done = facts(
        attention=(site, replace(site, fused=False, place="m.py:9")),
        unusual=("compiled", "random"),
        channels_last=True,
        optimizer="AdamW fused",
        bytes_by_dtype={"bfloat16": 8, "float32": 8},
    )
    assert current(done) == [
        "fused attention at m.py:4",
        "the model is compiled",
        "channels_last",
        "optimizer: AdamW fused",
        "bfloat16 weights",
    ]
    assert current(facts(optimizer="AdamW")) == []


def test_an_estimate_is_called_one_and_a_measurement_has_its_interval():
    assert improvement(HOPE, None) == "estimated: 1.40 times as fast: it was so elsewhere"
    assert improvement(HOPE, SDPA) == "measured: 1.80 (1.71 to 1.92) times as fast, kept"
    assert improvement(None, FUSED) == "measured: 1.02 (1.01 to 1.03) times as fast, reverted"
    untimed = Trial(strategy="a", verdict="not tried", reason="no time")
    assert improvement(HOPE, untimed).startswith("estimated: 1.40")
    assert improvement(None, untimed) == "not estimated"


def test_a_recommendation():
    found = recommendation(Quicker(), HOPE)
    assert (found.optimization_type, found.priority, found.difficulty) == ("quicker", "medium", "medium")
    assert found.description == "Does it in half the time."
    assert found.educational_notes == "Does it in half the time.\n\nBy leaving out half of it."
    assert found.implementation_steps[:2] == ["it needs compiler", "it needs magic"]
    assert found.code_example is None
    assert found.analysis is None


def test_a_recommendation_of_what_was_tried():
    found = recommendation(Quicker(), HOPE, SDPA)
    assert (found.priority, found.code_example) == ("high", SDPA.source[0])
    assert recommendation(Quicker(), HOPE, COMPILE).priority == "medium"
    assert recommendation(Quicker(), HOPE, replace(COMPILE, gain=1.05)).priority == "low"
    assert recommendation(Quicker(), None).priority == "low"


def test_what_was_measured_of_a_trial():
    found = measured(SDPA)
    assert (found["gain"], found["low"], found["high"], found["verdict"]) == (1.8, 1.71, 1.92, "kept")
    assert not found.keys() & {"pairs", "source"}
    assert measured(report().trials[-1])["gain"] is None
