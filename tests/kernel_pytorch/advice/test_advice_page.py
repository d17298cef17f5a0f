"""The report as JSON and as one page."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import jsonschema
import msgspec
import pytest
from advice_facts import facts
from advice_reports import RESULT, TRIALS, failed, nothing_kept, report

from kernel_pytorch.advice import charts
from kernel_pytorch.advice.facts import AdviceReport, Fact, OperatorCost, Roofline, Trial
from kernel_pytorch.advice.html import html

EVIL = '<script>alert("1")</script> & \x1b[2J'


def test_the_schema():
    """A change of it is a change of what scripts read."""
    path = resources.files("kernel_pytorch.advice").joinpath("advice.schema.json")
    schema = msgspec.json.encode(msgspec.json.schema(AdviceReport))
    assert json.loads(path.read_text()) == json.loads(schema), (
        "write advice/advice.schema.json anew: "
        'python -c "import msgspec; from kernel_pytorch.advice.facts import AdviceReport as R; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(R)), indent=1).decode())"'
    )


@pytest.mark.parametrize("given", [report(), nothing_kept(), failed()], ids=["kept", "nothing", "failed"])
def test_json_is_what_the_schema_describes_and_the_whole_report(given):
    path = resources.files("kernel_pytorch.advice").joinpath("advice.schema.json")
    jsonschema.validate(json.loads(given.to_json()), json.loads(path.read_text()))
    assert msgspec.json.decode(given.to_json(), type=AdviceReport) == given


class Page(HTMLParser):
    """Checks that every element is closed where it was opened; collects attributes and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def pictures(text: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return {svg.get("aria-label"): svg for svg in found}


def numbers(svg: ElementTree.Element, tag: str, name: str, kind: str = "") -> list[float]:
    found = [each for each in svg.iter(tag) if (each.get("class") or "").startswith(kind)]
    return [float(each.get(name)) for each in found]


@pytest.mark.parametrize("given", [report(), nothing_kept(), failed()], ids=["kept", "nothing", "failed"])
def test_one_file_without_a_network(given):
    page = parsed(html(given))
    assert page.references == ["data:,"]
    assert "script" not in page.tags
    assert not re.search(r"https?://|@import|url\(", html(given))


def test_what_the_page_says():
    text = html(report())
    for said in (
        "2.10 times as fast (2.02 to 2.17), confirmed in a fresh process",
        "attention by hand   model.py:31-33",
        "1.80 (1.71 to 1.92)",
        "reverted: a gain of 1.02 is not worth a change",
        "CUDA graphs: no GPU",
        "dilated attention",
        "Xeon of a test, cpu, 2 threads, torch 2.13.0",
    ):
        assert said in text, said


def test_names_are_escaped():
    module = replace(report().facts.modules[1], path=EVIL)
    operator = replace(report().facts.operators[0], name=EVIL)
    evil = report(
        target=EVIL,
        facts=replace(report().facts, modules=(module,), operators=(operator,), remarks=(EVIL,)),
        trials=tuple(replace(trial, strategy=EVIL, reason=EVIL) for trial in TRIALS),
        findings=tuple(replace(finding, place=EVIL) for finding in report().findings),
        reference=EVIL,
    )
    text = html(evil)
    assert "script" not in parsed(text).tags
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;") > 10


def test_every_pair_is_a_point_at_its_ratio():
    svg = pictures(html(report()))["Pairs of each trial"]
    timed = [trial for trial in (*TRIALS, RESULT) if trial.pairs]
    ratios = [before / after for trial in timed for before, after in trial.pairs]
    at = numbers(svg, "circle", "cx")
    assert len(at) == len(ratios) == 11 * 3 + 13
    (one,) = numbers(svg, "line", "x1", "one")
    scale = {
        round((x - one) / math.log(ratio), 0) for x, ratio in zip(at, ratios, strict=True) if ratio > 1.5
    }
    assert max(scale) - min(scale) <= 1  # a logarithmic axis through 1
    assert all((x > one) == (ratio > 1) for x, ratio in zip(at, ratios, strict=True))


def test_times_before_and_after():
    svg = pictures(html(report()))["Time by module"]
    wide = numbers(svg, "rect", "width")
    assert [round(each / wide[0], 2) for each in wide] == [1, round(0.0985 / 0.206, 2), 0.49, 0.34]
    said = [each.text for each in svg.iter("text")]
    assert said[::2] == ["the whole call", "the whole call, optimised", "blocks.0", "blocks.0.attention"]
    assert len(numbers(pictures(html(nothing_kept()))["Time by module"], "rect", "width")) == 3


def test_no_operator_is_above_the_roof_and_the_call_is_where_it_belongs():
    svg = pictures(html(report()))["Roofline"]
    roof = min(float(point.split(",")[1]) for point in svg.find("polyline").get("points").split())
    assert all(y > roof for y in numbers(svg, "circle", "cy"))
    assert len(numbers(svg, "circle", "cy")) == 3  # the softmax has no FLOPs
    titles = [each.find("title").text for each in svg.iter("circle")]
    assert titles[-1] == "the whole call\n26.2 GFLOP/s at 18 FLOPs a byte"


def test_memory_by_length_and_the_limit():
    svg = pictures(html(report()))["Memory by length"]
    (limit,) = numbers(svg, "line", "y1", "limit")
    assert [y < limit for y in numbers(svg, "circle", "cy")] == [False, False, True]  # y grows downwards


def test_what_is_unknown_is_said():
    text = html(failed())
    assert "The call was not timed: the model did not run on its inputs" in text
    assert "No other lengths were asked for" in text
    unmeasured = facts(roofline=Roofline(flops={}, memory_gb_s=None, unmeasured={"copy": "no time"}))
    assert charts.roofline(unmeasured) == "<p>The machine&#x27;s peaks were not measured: no time.</p>"
    assert charts.pairs([Trial(strategy="a", verdict="failed")]) == "<p>Nothing was timed.</p>"


def test_a_roofline_of_several_dtypes_and_no_point():
    known = facts(
        roofline=Roofline(flops={"float32": 1e11, "bfloat16": 2e9}, memory_gb_s=20.0),
        operators=(OperatorCost(name="aten::mm", calls=1, seconds=None, flops=1, bytes=1),),
        call=Fact(why="too slow"),
    )
    svg = ElementTree.fromstring(charts.roofline(known))
    assert len(list(svg.iter("polyline"))) == 2
    assert list(svg.iter("circle")) == []


def test_the_page_is_written_whole(tmp_path):
    report().to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == html(report())
    assert len(list(tmp_path.iterdir())) == 1
