"""Whether ranks, nodes and GPUs of a specification fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .checks import check_whole

if TYPE_CHECKING:
    from .spec import TrainingJobSpec


def check_layout(spec: TrainingJobSpec) -> None:
    """Raise TypeError or ValueError where the sizes of a specification have the wrong type or do not fit."""
    for name, least in {
        "data_parallel_size": 1,
        "ranks_per_node": 1,
        "max_replicas": 1,
        "gpus_per_node": 0,
    }.items():
        if getattr(spec, name) is not None:
            check_whole(name, getattr(spec, name), least)
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "min_replicas", "world_size"):
        check_whole(name, getattr(spec, name), 1)
    if spec.nodes is not None:
        object.__setattr__(spec, "nodes", _checked_range(spec.nodes))
    _check_nodes(spec)
    _check_gpus(spec)
    _check_parallel(spec)
    _check_scaling(spec)


def resized(spec: TrainingJobSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes and world size of a specification of which options change nodes, their ranks or their GPUs."""
    if "world_size" in options or not options.keys() & {"nodes", "ranks_per_node", "gpus_per_node"}:
        return {}
    nodes = spec.num_nodes if options.get("nodes") is None else _checked_range(options["nodes"])
    ranks = options.get("ranks_per_node", spec.ranks_per_node)
    if ranks is None:
        ranks = options.get("gpus_per_node") or spec.num_ranks_per_node
    return {"nodes": nodes, "world_size": nodes[1] * check_whole("ranks per node", ranks, 1)}


def _checked_range(nodes: object) -> tuple[int, int]:
    if not isinstance(nodes, (tuple, list)) or len(nodes) != 2:
        raise TypeError(f"nodes must be (min, max), got {nodes!r:.80}")
    least, most = (check_whole("nodes", count, 1) for count in nodes)
    if least > most:
        raise ValueError(f"nodes={least}:{most} must not have min > max")
    return least, most


def _check_nodes(spec: TrainingJobSpec) -> None:
    ranks, (_, most), world = spec.num_ranks_per_node, spec.num_nodes, spec.world_size
    if ranks * most != world:
        if spec.nodes is not None and spec.ranks_per_node is not None:
            raise ValueError(
                f"world_size={world} must be {ranks * most}: nodes={spec.nodes[0]}:{most} with "
                f"ranks_per_node={ranks}"
            )
        if spec.nodes is not None:
            raise ValueError(f"world_size={world} must be a multiple of the {most} nodes")
        what = "ranks_per_node" if spec.ranks_per_node is not None else "gpus_per_node"
        raise ValueError(f"world_size={world} must be a multiple of {what}={ranks}")
    cores = spec.resources.cpu_cores
    if cores is not None and cores < most:
        raise ValueError(f"cpu_cores={cores} of the whole job are not enough for {most} nodes")


def _check_gpus(spec: TrainingJobSpec) -> None:
    ranks, (_, most), total = spec.num_ranks_per_node, spec.num_nodes, spec.resources.gpu_count
    if total is not None and spec.gpus_per_node is not None and total != spec.gpus_per_node * most:
        raise ValueError(
            f"gpu_count={total} of the whole job must be {spec.gpus_per_node * most}: gpus_per_node="
            f"{spec.gpus_per_node} on {most} nodes"
        )
    if total is not None and total % most:
        raise ValueError(f"gpu_count={total} of the whole job must be a multiple of the {most} nodes")
    gpus = spec.num_gpus_per_node
    if gpus and ranks > gpus:
        raise ValueError(
            f"{ranks} ranks on a node of {gpus} GPUs: each rank needs its own; ask for more GPUs, for none, "
            f"or for fewer ranks_per_node (world_size={spec.world_size})"
        )


def _check_parallel(spec: TrainingJobSpec) -> None:
    tp, pp, dp = spec.tensor_parallel_size, spec.pipeline_parallel_size, spec.data_parallel_size
    sizes = f"tensor_parallel_size={tp} x pipeline_parallel_size={pp}"
    if spec.world_size % (tp * pp):
        raise ValueError(f"world_size={spec.world_size} must be a multiple of {sizes}")
    if dp is not None and dp * tp * pp != spec.world_size:
        raise ValueError(
            f"data_parallel_size={dp} x {sizes} must be world_size={spec.world_size}, not {dp * tp * pp}"
        )
    least, most = spec.num_nodes
    _check_each_size(spec, f"nodes={least}:{most}", least, most)


def _check_each_size(spec: TrainingJobSpec, what: str, least: int, most: int) -> None:
    """Every number of nodes must do: what divides the ranks of two successive numbers divides all."""
    ranks, split = spec.num_ranks_per_node, spec.tensor_parallel_size * spec.pipeline_parallel_size
    for count in (least, min(least + 1, most)):
        if ranks * count % split:
            raise ValueError(
                f"{what}: {_nodes(count)} would have {ranks * count} ranks, not a multiple of "
                f"tensor_parallel_size={spec.tensor_parallel_size} x "
                f"pipeline_parallel_size={spec.pipeline_parallel_size}; "
                "allow one number of nodes only, or split less"
            )


def _check_scaling(spec: TrainingJobSpec) -> None:
    least, most = spec.min_replicas, spec.max_replicas
    if most is not None and least > most:
        raise ValueError(f"min_replicas={least} must not be more than max_replicas={most}")
    if not spec.enable_auto_scaling:
        return
    nodes = spec.num_nodes[1]
    if least > nodes or (most is not None and most < nodes):
        raise ValueError(
            f"the job starts with {_nodes(nodes)}, outside of min_replicas={least}, max_replicas={most}"
        )
    _check_each_size(spec, f"min_replicas={least}, max_replicas={most}", least, most or nodes)


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count > 1)}"
