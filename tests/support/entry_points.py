"""Names by which older guides start suites: each stands for files and folders that hold the tests."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DISTRIBUTED_SCALE = (
    "tests/kernel_pytorch/distributed_scale",
    "tests/kernel_pytorch/cli/test_job_commands_slurm.py",
    "tests/kernel_pytorch/links/test_profiler_of_ranks.py",
    "tests/kernel_pytorch/machine/test_hung_driver.py",
)
"""Hardware, communication and orchestration by the names of ``kernel_pytorch.distributed_scale``."""
BENCHMARKING = (
    "tests/benchmarks/test_benchmark_measure.py",
    "tests/benchmarks/test_benchmark_run.py",
    "tests/kernel_pytorch/advice/prove/test_pairs.py",
)
"""The harness of the benchmarks: interleaving, ratios, intervals, and no figure while numerics fail."""
SUITES = {
    "tests/test_distributed_scale.py": DISTRIBUTED_SCALE,
    "tests/test_testing_framework.py": BENCHMARKING,
    "tests/test_testing_framework.py::TestPerformanceBenchmarking": BENCHMARKING,
}


def suites_of(arguments: list[str], folder: Path) -> list[str]:
    """Absolute paths of the suites that the arguments of pytest stand for.

    Args:
        arguments: paths, with or without ``::`` and the name of a test, as pytest was given them.
        folder: where pytest was started; relative arguments are below it.
    """
    found = []
    for argument in arguments:
        path, *inside = argument.split("::")
        file = (folder / path).resolve()
        if file.is_relative_to(ROOT):
            name = "::".join([file.relative_to(ROOT).as_posix(), *inside])
            found += [str(ROOT / suite) for suite in SUITES.get(name, ())]
    return found


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, and names that it imports from them, with the modules' names before."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files_importing(*modules: str) -> set[str]:
    """Test files that import one of these modules, or something below one of them."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if any(f"{name}.".startswith(f"{module}.") for name in imports_of(file) for module in modules)
    }


def outside(files: set[str], suites: tuple[str, ...]) -> set[str]:
    """Those of the files that are in none of the suites."""
    return {file for file in files if not any(Path(file).is_relative_to(suite) for suite in suites)}
