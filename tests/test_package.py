"""The public surface, the weight of an import, and who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dilated_attention_pytorch

SOURCES = Path(dilated_attention_pytorch.__file__).parents[1]
LOWER = SOURCES / "kernel_pytorch"
TORCH_ALONE = (
    "kernel_pytorch.advice.analysis.analyse",
    "kernel_pytorch.advice.analysis.attempt",
    "kernel_pytorch.advice.analysis.blame",
    "kernel_pytorch.advice.analysis.calls",
    "kernel_pytorch.advice.analysis.calls_watch",
    "kernel_pytorch.advice.analysis.constants",
    "kernel_pytorch.advice.analysis.copies_made",
    "kernel_pytorch.advice.analysis.costs",
    "kernel_pytorch.advice.analysis.dynamo_log",
    "kernel_pytorch.advice.analysis.fake",
    "kernel_pytorch.advice.analysis.flops",
    "kernel_pytorch.advice.analysis.formulas",
    "kernel_pytorch.advice.analysis.granted",
    "kernel_pytorch.advice.analysis.graph_breaks",
    "kernel_pytorch.advice.analysis.host_syncs",
    "kernel_pytorch.advice.analysis.loops",
    "kernel_pytorch.advice.analysis.moved_bytes",
    "kernel_pytorch.advice.analysis.observe",
    "kernel_pytorch.advice.analysis.operator_observers",
    "kernel_pytorch.advice.analysis.operators",
    "kernel_pytorch.advice.analysis.others",
    "kernel_pytorch.advice.analysis.parameters",
    "kernel_pytorch.advice.analysis.profile",
    "kernel_pytorch.advice.analysis.roofline",
    "kernel_pytorch.advice.analysis.runs",
    "kernel_pytorch.advice.analysis.scores",
    "kernel_pytorch.advice.analysis.storages",
    "kernel_pytorch.advice.analysis.survey",
    "kernel_pytorch.advice.analysis.traffic",
    "kernel_pytorch.advice.load",
    "kernel_pytorch.advice.redraw",
    "kernel_pytorch.advice.sample",
    "kernel_pytorch.advice.static",
    "kernel_pytorch.links.collectives.carry",
    "kernel_pytorch.links.collectives.choosing",
    "kernel_pytorch.links.collectives.collectives",
    "kernel_pytorch.links.collectives.dense",
    "kernel_pytorch.links.collectives.device",
    "kernel_pytorch.links.collectives.flat",
    "kernel_pytorch.links.collectives.gather",
    "kernel_pytorch.links.collectives.groups",
    "kernel_pytorch.links.collectives.plans",
    "kernel_pytorch.links.collectives.run",
    "kernel_pytorch.links.collectives.timed",
    "kernel_pytorch.links.compress.blockwise",
    "kernel_pytorch.links.compress.cast",
    "kernel_pytorch.links.compress.codec",
    "kernel_pytorch.links.compress.coded",
    "kernel_pytorch.links.compress.feedback",
    "kernel_pytorch.links.compress.hook_state",
    "kernel_pytorch.links.compress.hooks",
    "kernel_pytorch.links.compress.low_rank",
    "kernel_pytorch.links.compress.payload",
    "kernel_pytorch.links.compress.rounds",
    "kernel_pytorch.links.compress.topk",
    "kernel_pytorch.links.compress.wire",
    "kernel_pytorch.links.measure",
    "kernel_pytorch.links.profile.group",
    "kernel_pytorch.links.profile.work",
    "kernel_pytorch.links.profile.world",
    "kernel_pytorch.links.schedule.follow",
    "kernel_pytorch.links.schedule.pieces",
    "kernel_pytorch.links.schedule.queue",
    "kernel_pytorch.links.trains",
    "kernel_pytorch.machine.measure",
    "kernel_pytorch.machine.torch_devices",
)
LIBCST_ALONE = tuple(
    f"kernel_pytorch.migrate.{name}"
    for name in ("attributes", "file", "imports", "names", "rewrite", "statements", "strings")
)
SHIMS = (
    "communication_optimization",
    "compiler_optimization_assistant",
    "hardware_adaptation",
    "orchestration",
)
HEAVY = (
    "torch",
    "triton",
    "pynvml",
    "amdsmi",
    "prometheus_client",
    "matplotlib",
    "rich",
    "kubernetes",
    "libcst",
    "yaml",
)


def test_exported_names():
    assert dilated_attention_pytorch.__all__ == [
        "BaseRingAttention",
        "DilatedAttention",
        "DilatedPattern",
        "HilbertMixin",
        "LongNetConfig",
        "LongNetEncoder",
        "LongNetLM",
        "MultiheadDilatedAttention",
        "RingAttentionConfig",
        "RingDilatedAttention",
        "RingDilatedAttentionHilbert",
        "RingDistributedDilatedAttention",
        "UnifiedMemoryPool",
        "create_dilated_attention",
        "create_multihead_dilated_attention",
        "dense_state_dict",
        "dilated_attention",
        "hilbert_order",
        "merge_lse",
        "replace_attention",
        "shard_sequence",
        "unshard_sequence",
    ]
    for name in dilated_attention_pytorch.__all__:
        assert hasattr(dilated_attention_pytorch, name)


def test_import_is_silent_and_light():
    heavy = ("matplotlib", "rich", "kubernetes", "kernel_pytorch.machine", "torch._dynamo")
    script = (
        # Importing these now raises ImportError; torch itself imports pynvml where it is.
        "import sys; sys.modules['triton'] = sys.modules['pynvml'] = None\n"
        f"import dilated_attention_pytorch; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_lower_floor_imports_light():
    """All of it but what computes with torch (``machine/measure.py``) or uses libcst (``migrate/``)."""
    heavy = {*TORCH_ALONE, *LIBCST_ALONE, *map(module_name, with_torch())}
    names = [
        module
        for path in sorted(LOWER.rglob("*.py"))
        if (module := module_name(path)) not in heavy and not module.endswith((*SHIMS, "__main__"))
    ]
    assert "kernel_pytorch.advice.write" in names
    script = (
        "import importlib, sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def with_torch() -> list[Path]:
    """The modules of the advisor that say that they load torch."""
    found = []
    for path in sorted((LOWER / "advice").rglob("*.py")):
        says = ast.get_docstring(ast.parse(path.read_text())) or ""
        found += [path] if re.search(r"\b[Ii]mports\s+torch\b", says) else []
    return found


def test_the_advisor_loads_no_compiler_before_it_is_used():
    names = [module_name(path) for path in with_torch()]
    script = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_lower_floor_never_imports_the_upper():
    imported = re.compile(r"(import|from|import_module\().*dilated_attention_pytorch")
    for path in LOWER.rglob("*.py"):
        assert not imported.search(path.read_text()), path


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, *, anywhere: bool = False) -> set[str]:
    """Modules of the same package that a file imports when it is loaded or, anywhere, at all."""
    package = path.relative_to(SOURCES).parent.parts
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple((node.module or "").split("."))
            for alias in node.names:
                inner = SOURCES.joinpath(*base, alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.add(".".join([*base, alias.name] if is_module else base).strip("."))
    return found


# The folders of the lower floor, the lowest first. A folder may import from those before it.
FOLDERS = (
    "errors",
    "_lazy",
    "legacy",
    "groups",
    "machine",
    "watch",
    "power",
    "links",
    "placement",
    "jobs",
    "advice",
    "distributed_scale",
    "utils",
    "migrate",
    "cli",
)


def test_no_arrow_points_upwards():
    height = {f"kernel_pytorch.{name}": number for number, name in enumerate(FOLDERS)}
    height["kernel_pytorch"] = 0  # the version

    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2])

    for path in LOWER.rglob("*.py"):
        module = module_name(path)
        for imported in imports_of(path, anywhere=True) if module != "kernel_pytorch" else ():
            assert height[folder(imported)] <= height[folder(module)], f"{module} imports {imported}"


def test_names_of_test_modules_differ():
    """Pytest imports each by its own name, and ranks of a world load what they run by that."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_import_cycles():
    graph = {module_name(path): imports_of(path) for path in SOURCES.rglob("*.py")}
    assert "dilated_attention_pytorch.kernels.fused" in graph["dilated_attention_pytorch.kernels.sdpa"]
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in finished:
            for imported in graph.get(module, ()):
                visit(imported, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())
