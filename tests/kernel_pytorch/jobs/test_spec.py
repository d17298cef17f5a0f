"""Specifications: positional order, what is refused, sizes that follow from others."""

from __future__ import annotations

import inspect
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.spec import (
    ClusterNode,
    FailureType,
    JobState,
    JobStatus,
    ResourceRequirement,
    ResourceType,
    TrainingJobSpec,
)

CPU = ResourceRequirement(None, None, None, None)
GPUS = ResourceRequirement(16, 80, 64, 512)


def spec(world_size: int = 8, resources: ResourceRequirement = CPU, **fields: Any) -> TrainingJobSpec:
    values = {"job_id": "a-1", "name": "a", "image": None, "command": ["train"], **fields}
    return TrainingJobSpec(resources=resources, world_size=world_size, **values)


@pytest.mark.parametrize(
    ("kind", "positional", "named"),
    [
        (
            ResourceRequirement,
            "gpu_count gpu_memory_gb cpu_cores memory_gb storage_gb network_bandwidth_gbps "
            "required_gpu_types node_selector",
            "",
        ),
        (
            TrainingJobSpec,
            "job_id name image command resources world_size tensor_parallel_size pipeline_parallel_size "
            "data_parallel_size priority max_runtime_hours restart_policy checkpoint_interval_minutes "
            "env_vars volumes max_retries enable_auto_scaling min_replicas max_replicas",
            "nodes ranks_per_node gpus_per_node secrets options",
        ),
        (
            JobStatus,
            "job_id state start_time end_time allocated_nodes allocated_gpus current_epoch total_epochs loss "
            "throughput_samples_per_sec error_message restart_count last_checkpoint",
            "native_id native_state reason attempt step steps_lost as_of",
        ),
        (
            ClusterNode,
            "node_id hostname total_gpus available_gpus total_memory_gb available_memory_gb total_cpu_cores "
            "available_cpu_cores labels taints last_seen",
            "",
        ),
    ],
)
def test_arguments_in_the_inherited_order(kind: type, positional: str, named: str):
    parameters = inspect.signature(kind).parameters.values()
    by_kind = {key: [one.name for one in group] for key, group in itertools.groupby(parameters, _kind)}
    assert by_kind.pop(inspect.Parameter.POSITIONAL_OR_KEYWORD) == positional.split()
    assert by_kind.pop(inspect.Parameter.KEYWORD_ONLY, []) == named.split()
    assert not by_kind


def _kind(parameter: inspect.Parameter) -> object:
    return parameter.kind


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (JobState, "PENDING RUNNING COMPLETED FAILED CANCELLED SCALING"),
        (ResourceType, "GPU_MEMORY CPU_CORES SYSTEM_MEMORY NETWORK_BANDWIDTH STORAGE_IOPS"),
        (
            FailureType,
            "NODE_FAILURE GPU_FAILURE NETWORK_FAILURE SOFTWARE_FAILURE OOM_FAILURE TIMEOUT_FAILURE",
        ),
    ],
)
def test_words(kind: Any, names: str):
    assert [(one.name, one.value) for one in kind] == [(name, name.lower()) for name in names.split()]


def test_defaults():
    made = TrainingJobSpec("a-1", "a", "img", ["train"], ResourceRequirement(8, 80, 64, 512), 8)
    assert (made.tensor_parallel_size, made.pipeline_parallel_size, made.data_parallel_size) == (1, 1, 8)
    assert (made.priority, made.max_runtime_hours, made.restart_policy) == (0, 24, "OnFailure")
    assert (made.checkpoint_interval_minutes, made.max_retries) == (30, 3)
    assert (made.env_vars, made.volumes, made.secrets, made.options) == ({}, [], {}, {})
    assert (made.enable_auto_scaling, made.min_replicas, made.max_replicas) == (False, 1, None)
    assert (made.resources.storage_gb, made.resources.network_bandwidth_gbps) == (100, 10)
    status = JobStatus("a-1")
    assert {value for name, value in vars(status).items() if name != "job_id"} == {None}


@pytest.mark.parametrize(
    ("fields", "nodes", "ranks", "gpus"),
    [
        ({}, (1, 1), 8, None),
        ({"ranks_per_node": 2}, (4, 4), 2, None),
        ({"gpus_per_node": 4}, (2, 2), 4, 4),
        ({"gpus_per_node": 0}, (1, 1), 8, 0),
        ({"gpus_per_node": 8, "ranks_per_node": 4}, (2, 2), 4, 8),
        ({"nodes": (2, 4)}, (2, 4), 2, None),
        ({"nodes": [2, 4], "gpus_per_node": 2}, (2, 4), 2, 2),
        ({"nodes": (2, 2), "resources": GPUS}, (2, 2), 4, 8),
        ({"resources": GPUS}, (1, 1), 8, 16),
    ],
)
def test_nodes_ranks_and_gpus(fields: dict[str, Any], nodes: tuple[int, int], ranks: int, gpus: int | None):
    made = spec(**fields)
    assert (made.num_nodes, made.num_ranks_per_node, made.num_gpus_per_node) == (nodes, ranks, gpus)


@given(
    extra=st.sampled_from([0, 0, 0, 1, -1]),
    nodes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ranks=st.integers(1, 5),
    tp=st.integers(1, 4),
    pp=st.integers(1, 4),
)
def test_a_layout_is_allowed_if_every_number_of_nodes_works(
    extra: int, nodes: tuple[int, int], ranks: int, tp: int, pp: int
):
    least, most = nodes
    world = ranks * most + extra
    counts = range(least, most + 1)
    works = bool(counts) and not extra and all(ranks * n % (tp * pp) == 0 for n in counts)
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    try:
        made = spec(world, nodes=nodes, ranks_per_node=ranks, **sizes)
    except ValueError:
        assert not works
    else:
        assert works
        assert made.data_parallel_size == world // (tp * pp)


BAD = [
    ({"tensor_parallel_size": 3}, "world_size=8 must be a multiple of tensor_parallel_size=3 x pipeline_par"),
    (
        {"tensor_parallel_size": 2, "data_parallel_size": 3},
        "data_parallel_size=3 x tensor_parallel_size=2 x pipeline_parallel_size=1 must be world_size=8, not",
    ),
    ({"data_parallel_size": 0}, "data_parallel_size must be at least 1, got 0"),
    ({"world_size": 0}, "world_size must be at least 1, got 0"),
    ({"nodes": (4, 2)}, "nodes=4:2 must not have min > max"),
    ({"nodes": (0, 2)}, "nodes must be at least 1, got 0"),
    ({"nodes": (1, 3)}, "world_size=8 must be a multiple of the 3 nodes"),
    (
        {"nodes": (1, 2), "ranks_per_node": 8},
        "world_size=8 must be 16: nodes=1:2 with ranks_per_node=8",
    ),
    ({"ranks_per_node": 3}, "world_size=8 must be a multiple of ranks_per_node=3"),
    ({"ranks_per_node": 16}, "world_size=8 must be a multiple of ranks_per_node=16"),
    ({"gpus_per_node": 3}, "world_size=8 must be a multiple of gpus_per_node=3"),
    ({"gpus_per_node": -1}, "gpus_per_node must be at least 0, got -1"),
    ({"gpus_per_node": 2, "ranks_per_node": 4}, "4 ranks on a node of 2 GPUs: each rank needs its own"),
    (
        {"nodes": (2, 4), "world_size": 16, "tensor_parallel_size": 8},
        "nodes=2:4: 3 nodes would have 12 ranks, not a multiple of tensor_parallel_size=8 x pipeline",
    ),
    (
        {"nodes": (1, 4), "tensor_parallel_size": 4},
        "nodes=1:4: 1 node would have 2 ranks, not a multiple of tensor_parallel_size=4 x pipeline",
    ),
    (
        {"resources": GPUS, "gpus_per_node": 4},
        "gpu_count=16 of the whole job must be 8: gpus_per_node=4",
    ),
    (
        {"resources": ResourceRequirement(7, 1, 8, 1), "nodes": (2, 2)},
        "gpu_count=7 of the whole job must",
    ),
    ({"resources": ResourceRequirement(4, 1, 8, 1)}, "8 ranks on a node of 4 GPUs"),
    ({"resources": ResourceRequirement(0, 0, 1, 1), "nodes": (2, 2)}, "cpu_cores=1 of the whole job are not"),
    ({"min_replicas": 3, "max_replicas": 2}, "min_replicas=3 must not be more than max_replicas=2"),
    (
        {"enable_auto_scaling": True, "min_replicas": 2},
        "the job starts with 1 node, outside of min_repl",
    ),
    (
        {"enable_auto_scaling": True, "max_replicas": 2, "nodes": (4, 4)},
        "the job starts with 4 nodes, outside of min_replicas=1, max_replicas=2",
    ),
    (
        {"enable_auto_scaling": True, "nodes": (4, 4), "tensor_parallel_size": 4},
        "min_replicas=1, max_replicas=None: 1 node would have 2 ranks, not a multiple of",
    ),
    ({"command": []}, r"command must start with a program, got \[\]"),
    ({"command": [" "]}, "command must start with a program"),
    ({"command": ["a\0"]}, r"command\[0\] must not contain NUL"),
    ({"command": ["a", "\ud800"]}, r"command\[1\] has a surrogate that stands for no byte, got '\\ud800'"),
    ({"name": ""}, "name must not be empty, got ''"),
    ({"name": " \n"}, "name must not be empty"),
    ({"image": ""}, "image must not be empty"),
    ({"job_id": "a/b"}, "job_id must be up to 100 letters, digits, '.', '_' and '-', got 'a/b'"),
    ({"job_id": ".."}, "job_id must be up to 100"),
    ({"max_runtime_hours": 0}, "max_runtime_hours must be positive and at most 87600, got 0"),
    ({"max_runtime_hours": -1}, "max_runtime_hours must be finite and not negative, got -1"),
    ({"max_runtime_hours": float("nan")}, "max_runtime_hours must be finite and not negative, got nan"),
    ({"max_runtime_hours": float("inf")}, "max_runtime_hours must be finite and not negative, got inf"),
    ({"max_runtime_hours": 87601}, "max_runtime_hours must be positive and at most 87600, got 87601"),
    ({"checkpoint_interval_minutes": 0}, "checkpoint_interval_minutes must be positive"),
    ({"max_retries": -1}, "max_retries must be at least 0, got -1"),
    ({"restart_policy": "Always"}, "restart_policy must be OnFailure or Never, got 'Always'"),
    ({"restart_policy": None}, "restart_policy must be OnFailure or Never, got None"),
    ({"options": {"slrum": {}}}, "unknown key 'slrum' in options: did you mean 'slurm'?"),
    ({"options": {"slurm": {"x": float("inf")}}}, r"options.slurm.x must be finite, got inf"),
    ({"env_vars": {"A=B": "1"}}, "env_vars: 'A=B' is not the name of a variable"),
    ({"env_vars": {"": "1"}}, "env_vars: '' is not the name of a variable"),
    ({"env_vars": {"LOCAL_RANK": "1"}}, "env_vars must not have LOCAL_RANK: the launcher sets it"),
    ({"secrets": {"KERNEL_PYTORCH_JOB": "env:A"}}, "secrets must not have KERNEL_PYTORCH_JOB"),
    ({"secrets": {"TOKEN": "env:"}}, "secrets.TOKEN must be file:PATH or env:NAME"),
    ({"secrets": {"A": "env:B"}, "env_vars": {"A": "1"}}, "A must be in env_vars or in secrets, not in both"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_values_are_named(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"world_size": "8"}, r"world_size must be an int, got str \('8'\)"),
        ({"world_size": True}, "world_size must be an int, got bool"),
        ({"nodes": "2:4"}, r"nodes must be \(min, max\), got '2:4'"),
        ({"nodes": (1, 2, 3)}, r"nodes must be \(min, max\)"),
        ({"command": "train"}, "command must be a list of strings, got str"),
        ({"command": ["train", 3]}, r"command\[1\] must be a string, got int \(3\)"),
        ({"max_runtime_hours": "4h"}, "max_runtime_hours must be a number, got str"),
        ({"resources": {}}, "resources must be a ResourceRequirement, got dict"),
        ({"enable_auto_scaling": 1}, "enable_auto_scaling must be a bool, got 1"),
        ({"env_vars": ["A=1"]}, "env_vars must be a mapping, got list"),
        ({"env_vars": {1: "a"}}, r"a key of env_vars must be a string, got int \(1\)"),
        ({"volumes": ["/data"]}, "volumes must be a list of mappings"),
        (
            {"volumes": [{"a": {1}}]},
            r"volumes\[0\].a must be a string, number, boolean, list or",
        ),
        ({"options": {"slurm": "x"}}, "options.slurm must be a mapping"),
    ],
)
def test_wrong_types_are_named(fields: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu_count": -1}, "gpu_count must be at least 0, got -1"),
        ({"cpu_cores": 0}, "cpu_cores must be at least 1, got 0"),
        ({"memory_gb": float("nan")}, "memory_gb must be finite and not negative, got nan"),
        ({"required_gpu_types": []}, "required_gpu_types must not be empty"),
        ({"required_gpu_types": [""]}, r"required_gpu_types\[0\] must not be empty"),
    ],
)
def test_bad_resources_are_named(fields: dict[str, Any], message: str):
    values = dict.fromkeys(("gpu_count", "gpu_memory_gb", "cpu_cores", "memory_gb")) | fields
    with pytest.raises(ValueError, match=message):
        ResourceRequirement(**values)


def test_messages_have_no_values_of_variables():
    for fields in (
        {"env_vars": {"A": "hunter2\0"}},
        {"env_vars": {"A": ["hunter2"]}},
        {"secrets": {"A": "hunter2"}},
        {"env_vars": {"RANK": "hunter2"}},
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            spec(**fields)
        assert "hunter2" not in str(caught.value)


def test_a_spec_does_not_share_what_it_was_given():
    command, env, options = ["train"], {"A": "1"}, {"slurm": {"exclude": ["n1"]}}
    made = spec(command=command, env_vars=env, options=options)
    command.append("x")
    env["B"] = "2"
    options["slurm"]["exclude"].append("n2")
    copied = made.to_dict()
    copied["options"]["slurm"]["exclude"].append("n3")
    assert (made.command, made.env_vars) == (["train"], {"A": "1"})
    assert made.options == {"slurm": {"exclude": ["n1"]}}


# What a process can be given: all but NUL; lone surrogates stand for bytes that are not UTF-8.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    ),
    max_size=12,
)
NAMES = TEXT.filter(lambda name: name.strip() and "=" not in name and not name.isupper())
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SPECS = st.builds(
    spec,
    resources=st.builds(
        ResourceRequirement,
        st.none(),
        st.none() | st.floats(0, 1e6),
        st.none() | st.integers(4, 99),
        st.none() | st.floats(0, 1e6),
        required_gpu_types=st.none() | st.lists(NAMES, min_size=1, max_size=2),
        node_selector=st.none() | st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    job_id=st.none() | st.just("a-1"),
    name=NAMES,
    image=st.none() | NAMES,
    command=st.builds(lambda first, rest: [first, *rest], NAMES, st.lists(TEXT, max_size=4)),
    max_runtime_hours=st.floats(1e-3, 87_600),
    env_vars=st.dictionaries(NAMES, TEXT, max_size=3),
    volumes=st.lists(st.dictionaries(TEXT, PLAIN, max_size=2), max_size=2),
    nodes=st.sampled_from([None, (2, 4), (4, 4)]),
    options=st.dictionaries(st.just("slurm"), st.dictionaries(TEXT, PLAIN, max_size=3), max_size=1),
)


@given(made=SPECS)
def test_plain_values_survive_json(made: TrainingJobSpec):
    assert spec_of(json.loads(json.dumps(made.to_dict()))) == made


def test_with_options():
    made = spec(16, nodes=(2, 2), gpus_per_node=8, tensor_parallel_size=4)
    assert made.with_options(name="b") == spec(
        16, nodes=(2, 2), gpus_per_node=8, tensor_parallel_size=4, name="b"
    )
    assert made.name == "a"
    bigger = made.with_options(nodes=(2, 4))
    assert (bigger.world_size, bigger.data_parallel_size, bigger.num_ranks_per_node) == (32, 8, 8)
    assert made.with_options(gpus_per_node=4).world_size == 8
    assert made.with_options(ranks_per_node=4).world_size == 8
    assert made.with_options(tensor_parallel_size=2).data_parallel_size == 8
    assert made.with_options(nodes=(1, 1), world_size=8).num_ranks_per_node == 8
    assert spec(2).with_options(nodes=(1, 3)).world_size == 6
    with pytest.raises(ValueError, match="unknown key 'node': did you mean 'nodes'"):
        made.with_options(node=(1, 1))
    with pytest.raises(TypeError, match=r"nodes must be \(min, max\), got '2:4'"):
        made.with_options(nodes="2:4")
    with pytest.raises(TypeError, match="must be an int, got str"):
        made.with_options(ranks_per_node="8")
