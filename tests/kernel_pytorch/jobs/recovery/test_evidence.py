from __future__ import annotations

import json

import pytest
from hypothesis import given
from job_evidence import EVIDENCE

from kernel_pytorch.jobs.recovery.evidence import Evidence


@given(EVIDENCE)
def test_it_survives_json(evidence: Evidence):
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence


def test_what_is_not_known_is_not_written():
    assert Evidence().to_dict() == {}
    assert Evidence(oom_kills={"n1": 0}, exit_codes={3: 0}).to_dict() == {
        "exit_codes": {"3": 0},
        "oom_kills": {"n1": 0},
    }


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match="unknown evidence: exit_code, zeal"):
        Evidence.from_dict({"zeal": 1, "exit_code": 2, "cancelled": True})
