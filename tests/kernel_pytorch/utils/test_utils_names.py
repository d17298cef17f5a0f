"""The inherited names of utils: they only adapt, and do what they say to a model."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from advice_facts import facts
from advice_reports import COMPILE, FUSED, LEFT, RESULT, SDPA, report
from torch import nn

from kernel_pytorch import utils
from kernel_pytorch.advice import assist, recommend
from kernel_pytorch.advice.facts import Expectation, Trial
from kernel_pytorch.advice.inherited import analysis_fields
from kernel_pytorch.advice.strategy import registry
from kernel_pytorch.advice.strategy.protocol import Base
from kernel_pytorch.utils import (
    CodeAnalyzer,
    CompilerOptimizationAssistant,
    ModelAnalysisResult,
    ModelArchitectureAnalyzer,
    OptimizationImplementer,
    OptimizationRecommendationEngine,
    PerformanceBottleneckDetector,
)

FILES = sorted(Path(utils.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_adapter_is_short_and_loads_torch_in_its_methods_alone(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    loaded = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [node for node in loaded if "torch" in ast.unparse(node).replace("kernel_pytorch", "")]
    assert [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.For, ast.While))] == []


class Doubled(Base):
    """Twice the gain."""

    name = "doubled"
    offset: Any = None

    def applies(self, facts):
        return "it is training" if facts.training else Expectation(gain=1.5, reason="made up")

    def apply(self, model, sample):
        with torch.no_grad():
            model[0].weight *= 2
        model.seen = sample.args[0].shape
        return model

    def source(self):
        return ["with torch.no_grad():", "    model[0].weight *= 2"]


class Broken(Doubled):
    """Fails."""

    name = "broken"

    def applies(self, facts):
        return Expectation(gain=1.2, reason="made up")

    def apply(self, model, sample):
        raise RuntimeError("it broke")


class Other(Doubled):
    """Another function."""

    name = "other"
    offers = True


def made_up():
    return [Broken(), Other(), Doubled()]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval()


@pytest.fixture
def strategies(monkeypatch):
    monkeypatch.setattr(registry, "strategies", made_up)


def analysed(**changes):
    return ModelAnalysisResult(**analysis_fields(facts(**changes), (), (), torch.ones(3, 4)))


def test_recommendations_are_what_applies_with_an_estimate(strategies):
    analysis = analysed()
    first, second = OptimizationRecommendationEngine().generate_recommendations(analysis)
    assert (first.optimization_type, second.optimization_type) == ("doubled", "broken")
    assert first.expected_improvement == "estimated: 1.50 times as fast: made up"
    assert first.analysis is analysis


def test_nothing_is_recommended_of_what_did_not_run(strategies):
    engine = OptimizationRecommendationEngine()
    assert engine.generate_recommendations(analysed(failed="it raised")) == []
    assert engine.generate_recommendations(replace(analysed(), facts=None)) == []


def test_implementing_changes_a_copy(strategies, model):
    before = model[0].weight.clone()
    (wanted, _) = OptimizationRecommendationEngine().generate_recommendations(analysed())
    changed, code = OptimizationImplementer().implement_optimization(model, wanted)
    assert changed is not model
    assert changed.seen == (3, 4)
    assert torch.equal(model[0].weight, before)
    assert not hasattr(model, "seen")
    exec(code, {"torch": torch, "model": model})
    assert torch.equal(model[0].weight, changed[0].weight)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("doubled", {"training": True}, "doubled does not apply: it is training"),
        ("doubled", {"unusual": ("scripted",)}, "doubled does not apply: the model is a ScriptModule"),
        ("other", {}, "other does not apply: it computes another function"),
        ("broken", {}, "broken cannot be applied: RuntimeError: it broke"),
        ("missing", {}, "no strategy is named 'missing'; there are broken, other, doubled"),
    ],
)
def test_what_cannot_be_implemented_says_why(strategies, model, name, changes, reason):
    (wanted, *_) = OptimizationRecommendationEngine().generate_recommendations(analysed())
    wanted = replace(wanted, optimization_type=name, analysis=analysed(**changes))
    with pytest.raises(ValueError, match=reason):
        OptimizationImplementer().implement_optimization(model, wanted)
    with pytest.raises(ValueError, match="needs the facts of a call"):
        OptimizationImplementer().implement_optimization(
            model, replace(wanted, optimization_type="doubled", analysis=None)
        )


def test_a_model_is_analysed_and_what_is_wrong_of_it_is_not_kept(model, strategies):
    """One real run: facts, a change that is wrong, and the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 4)
    analysis = ModelArchitectureAnalyzer().analyze(model, x)
    assert analysis.facts.parameters == analysis.model_info["parameters"] == 20
    assert analysis.facts.flops.value == 2 * 8 * 4 * 4
    assert analysis.improvement_potential == pytest.approx(
        analysis.facts.call.value / analysis.facts.bound.value
    )
    assert PerformanceBottleneckDetector().detect_bottlenecks(model, analysis) == []
    wanted = OptimizationRecommendationEngine().generate_recommendations(analysis)
    found = CompilerOptimizationAssistant().apply_recommendations(model, wanted, x)
    assert found["original_model"] is model
    assert found["optimized_models"] == found["implementation_code"] == {}
    doubled, broken = (found["performance_improvements"][name] for name in ("doubled", "broken"))
    assert doubled["verdict"] == "reverted"
    assert doubled["error"] > 0.5
    assert (broken["verdict"], broken["gain"]) == ("failed", None)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_without_a_sample_only_static_facts(model):
    analysis = ModelArchitectureAnalyzer("cpu").analyze(model)
    assert analysis.facts.parameters == 20
    assert analysis.overall_optimization_score is analysis.improvement_potential is None
    assert "no sample input" in analysis.facts.failed
    assert PerformanceBottleneckDetector().detect_bottlenecks(model, analysis) == []


def test_code_of_a_model(model):
    found = CodeAnalyzer().analyze_model(model)
    assert found["modules"] == {"Sequential": 1, "Linear": 1, "GELU": 1}
    assert (found["model"], found["parameters"]) == ("Sequential", 20)
    assert "linear.py" in found["places"]["Linear"]


class FakeSession:
    """Keeps what is named in ``keeps``."""

    keeps: tuple[str, ...] = ()

    def __init__(self, task):
        self.task = task

    def facts(self, limit):
        return facts()

    def trial(self, kept, strategy):
        verdict = "kept" if strategy.name in self.keeps else "reverted"
        return replace(SDPA, strategy=strategy.name, verdict=verdict, reason=str([one.name for one in kept]))

    def build(self, kept):
        copy = nn.Sequential(*self.task.model)
        copy.names = [strategy.name for strategy in kept]
        return copy


def test_each_change_is_proved_on_top_of_those_kept(monkeypatch, strategies, model):
    monkeypatch.setattr(assist, "Session", FakeSession)
    monkeypatch.setattr(FakeSession, "keeps", ("broken", "doubled"))
    wanted = OptimizationRecommendationEngine().generate_recommendations(analysed())
    wanted.append(replace(wanted[0], optimization_type="other"))
    found = CompilerOptimizationAssistant().apply_recommendations(model, wanted, torch.ones(1, 4))
    assert [copy.names for copy in found["optimized_models"].values()] == [["doubled"], ["doubled", "broken"]]
    assert found["implementation_code"] == dict.fromkeys(("doubled", "broken"), SDPA.source[0])
    reasons = {name: each["reason"] for name, each in found["performance_improvements"].items()}
    assert reasons == {"doubled": "[]", "broken": "['doubled']", "other": "it computes another function"}


def optimised_with(monkeypatch, best, found):
    given = {}

    def optimise(*arguments, **options):
        given.update(options, arguments=arguments)
        return found, best or arguments[0]

    monkeypatch.setattr(assist, "optimise", optimise)
    return given


def test_a_model_is_optimised(monkeypatch, strategies, model):
    best = nn.Identity()
    named = [replace(SDPA, strategy="doubled"), replace(FUSED, strategy="other")]
    late = replace(LEFT[0], strategy="broken", reason="no time was left", expected=1.2)
    ran = report(trials=(*named, late, replace(late, strategy="other", expected=None)), result=RESULT)
    given = optimised_with(monkeypatch, best, ran)
    assistant = CompilerOptimizationAssistant()
    x = torch.ones(1, 4)
    found = assistant.optimize_model(model, x, "aggressive", training=True, budget_s=5.0, lengths=[2])
    assert given.pop("arguments") == (model, x, "aggressive")
    assert given == {
        "training": True,
        "loss": None,
        "optimizer": None,
        "max_error": 0.01,
        "memory_gb": None,
        "lengths": [2],
        "budget_s": 5.0,
    }
    assert isinstance(found, ModelAnalysisResult)
    assert found.optimized_model is best
    assert found.report is ran
    assert found.trials == ran.trials
    assert found.overall_optimization_score == ran.facts.attained.value
    kept, left = found.recommendations
    assert kept.expected_improvement == "measured: 1.80 (1.71 to 1.92) times as fast, kept"
    assert left.expected_improvement == "estimated: 1.20 times as fast: made up"
    assert kept.analysis is found


def test_the_model_given_comes_back_if_nothing_was_kept(monkeypatch, strategies, model):
    optimised_with(monkeypatch, None, report(trials=(), result=None))
    found = CompilerOptimizationAssistant("cpu").optimize_model(model, torch.ones(1, 4))
    assert found.optimized_model is model
    assert found.recommendations == []


def test_both_homes_have_the_names():
    assert utils.OptimizationResult is assist.OptimizationResult
    assert recommend.OptimizationRecommendation is utils.OptimizationRecommendation
    assert isinstance(COMPILE, Trial)
