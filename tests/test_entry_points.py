"""The names by which older guides start suites collect what is collected at home, and nothing twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from entry_points import BENCHMARKING, DISTRIBUTED_SCALE, ROOT

SCALE = "tests/test_distributed_scale.py"
FRAMEWORK = "tests/test_testing_framework.py"
CLASS = f"{FRAMEWORK}::TestPerformanceBenchmarking"
CALLS = {
    "scale": [SCALE],
    "scale at home": DISTRIBUTED_SCALE,
    "class": [CLASS],
    "its file": [FRAMEWORK],
    "class at home": BENCHMARKING,
    "all of them": [BENCHMARKING[0], SCALE, CLASS, *DISTRIBUTED_SCALE, FRAMEWORK],
    "one test": [f"{CLASS}::test_a_ratio_is_per_unit_of_work"],
}
COLLECT = """
import json, sys, pytest

class Collected:
    def pytest_collection_finish(self, session):
        self.tests = [[item.nodeid, marks(item), item.fixturenames] for item in session.items]

def marks(item):
    return sorted(mark.name + str(mark.args) for mark in item.iter_markers())

found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    collected = Collected()
    status = pytest.main(["-qq", "--collect-only", "-p", "no:cacheprovider", *arguments], plugins=[collected])
    assert status == 0, name
    found[name] = collected.tests
print("\\n" + json.dumps(found))
"""


def output_of(*command: str, folder: str = ".") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT / folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def collected():
    """For each of ``CALLS`` what pytest collects: tests by name, each with its marks and fixtures."""
    found = json.loads(output_of("-c", COLLECT, json.dumps(CALLS)).splitlines()[-1])
    for call, tests in found.items():
        names = [name for name, _, _ in tests]
        assert len(names) == len(set(names)), f"{call}: a test is collected twice"
    return {
        call: {name: (marks, fixtures) for name, marks, fixtures in tests} for call, tests in found.items()
    }


@pytest.mark.parametrize(
    ("entry", "home", "file"),
    [
        ("scale", "scale at home", SCALE),
        ("class", "class at home", CLASS),
        ("its file", "class at home", FRAMEWORK),
    ],
)
def test_an_entry_point_collects_its_suites_and_its_own_tests(collected, entry, home, file):
    own = {name: test for name, test in collected["all of them"].items() if name.startswith(file)}
    assert len(collected[home]) > 50
    assert own
    assert collected[entry] == collected[home] | own


def test_entry_points_and_homes_together_are_their_union(collected):
    assert collected["all of them"] == collected["scale"] | collected["class"]


def test_one_test_by_its_name_is_one_test(collected):
    assert [*collected["one test"]] == CALLS["one test"]


def test_a_worker_runs_what_is_collected_also_from_another_folder():
    chosen = ["test_order_alternates", "test_a_ratio_is_per_unit_of_work"]
    options = ["-n", "1", "--dist", "loadgroup", "-p", "no:cacheprovider", "-v", "-k", " or ".join(chosen)]
    output = output_of("-m", "pytest", *options, CLASS.removeprefix("tests/"), folder="tests")
    assert sorted(re.findall(r"PASSED \S+::(\w+)", output)) == sorted(chosen)


def test_no_test_of_this_run_is_here_twice(request):
    """Neither by its name nor imported from another module."""
    items = request.session.items
    assert len(items) == len({item.nodeid for item in items})
    imported = [
        item.nodeid
        for item in items
        if isinstance(item, pytest.Function) and item.function.__module__ != item.module.__name__
    ]
    assert imported == []
