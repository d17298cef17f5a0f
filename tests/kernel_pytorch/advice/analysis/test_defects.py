"""Findings over models with one defect each and clean ones: precision and recall."""

from __future__ import annotations

from collections import Counter

from advice_defects import CLEAN, DEFECTS, Case
from advice_facts import facts

from kernel_pytorch.advice.analysis.findings import findings
from kernel_pytorch.advice.analysis.observe import observe
from kernel_pytorch.advice.facts import Finding


def found_in(case: Case) -> tuple[Finding, ...]:
    observed = observe(case.task())
    assert observed.unobserved == (), case.name
    return findings(facts(training=case.training, **case.recorded), observed)


def test_precision_and_recall():
    assert len(DEFECTS) >= 24
    assert len(CLEAN) >= 8
    confusion: Counter[tuple[str, str]] = Counter()
    right = reported = 0
    for case in (*DEFECTS, *CLEAN):
        found = found_in(case)
        reported += len(found)
        hits = [f for f in found if f.kind == case.kind and f.place == case.expected()]
        right += bool(hits)
        assert all(f.cost and f.remedy for f in found)
        for kind in {f.kind for f in found} or {"nothing"}:
            confusion[case.kind or "clean", kind] += 1
        for finding in found:
            if finding not in hits:
                print(f"{case.name}, expected {case.kind or 'nothing'}: {finding}")
        if case.kind and not hits:
            print(f"{case.name}: missed {case.kind} at {case.expected()}")
    for (expected, kind), count in sorted(confusion.items()):
        print(f"{expected:32} {kind:32} {count:3}")
    precision, recall = right / reported, right / len(DEFECTS)
    print(
        f"precision {precision:.3f}, recall {recall:.3f} of {len(DEFECTS)} defects, {len(CLEAN)} clean models"
    )
    assert precision >= 0.95
    assert recall >= 0.95
