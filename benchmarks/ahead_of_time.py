"""The Triton kernels compiled for GPUs that need not be here: registers, shared memory, spills.

``python -m benchmarks.ahead_of_time sm_90`` compiles what the tests compile and prints it as JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dilated_attention_pytorch.kernels.triton import tuning
from dilated_attention_pytorch.kernels.triton.backward import key_gradient_kernel, query_gradient_kernel
from dilated_attention_pytorch.kernels.triton.forward import forward_kernel
from dilated_attention_pytorch.kernels.triton.index import Tables
from dilated_attention_pytorch.kernels.triton.visits import visits_of
from dilated_attention_pytorch.kernels.triton.walk import Extent

from .measure import progress
from .registry import Options, Table, benchmark

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory a program may have (CUDA C++ Programming Guide 13.0, technical specifications; AMD
# CDNA 3 ISA, LDS). For sm_80 those of its smaller relatives, sm_86 and sm_89.
SHARED_LIMITS = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

KERNELS = {
    "forward": forward_kernel,
    "query gradient": query_gradient_kernel,
    "key gradient": key_gradient_kernel,
}
ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
PATTERNS = {
    "one": ((2048, 1),),
    "three": ((2048, 1), (4096, 2), (8192, 4)),
    "five": ((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12)),
}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a kernel is compiled for; its blocks are the defaults."""

    kernel: str
    family: str
    dtype: str
    head_dim: int
    pattern: str
    is_causal: bool = False
    is_padded: bool = False
    is_indexed: bool = False


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the compiled kernel takes."""

    blocks: str
    """Rows x columns, warps, stages."""
    registers: int
    """Of a thread (AMD: vector registers)."""
    shared_bytes: int
    """Of a program."""
    spilled_bytes: int
    """Of a thread, in memory."""
    matrix_instruction: str
    """What multiplies matrices: wgmma, tcgen05, mma, mfma or, for float32, fma."""
    seconds: float
    """Of compilation."""


def representative(family: str) -> Iterator[Configuration]:
    """15 configurations for a family, for the tests."""
    for kernel in KERNELS:
        for rest in (
            {"dtype": "bf16", "head_dim": 64, "pattern": "three", "is_causal": True},
            {"dtype": "fp16", "head_dim": 128, "pattern": "five", "is_causal": True},
            {"dtype": "bf16", "head_dim": 128, "pattern": "one"},
            {
                "dtype": "bf16",
                "head_dim": 32,
                "pattern": "three",
                "is_causal": True,
                "is_padded": True,
                "is_indexed": True,
            },
            {"dtype": "fp32", "head_dim": 64, "pattern": "three", "is_causal": True},
        ):
            yield Configuration(kernel=kernel, family=family, **rest)  # type: ignore[arg-type]


def every_configuration() -> Iterator[Configuration]:
    """The full sweep."""
    for family, kernel, dtype, head_dim, (pattern, is_causal) in product(
        TARGETS, KERNELS, ITEM_BYTES, (32, 64, 128, 256), (("one", False), ("five", True))
    ):
        yield Configuration(
            kernel=kernel, family=family, dtype=dtype, head_dim=head_dim, pattern=pattern, is_causal=is_causal
        )


def compile_ahead(configuration: Configuration) -> Usage:
    """Compile a kernel for a family of GPUs, as its first launch on one would."""
    kernel = KERNELS[configuration.kernel]
    visits = visits_of(PATTERNS[configuration.pattern])
    blocks = tuning.default_blocks(
        kernel, visits, ITEM_BYTES[configuration.dtype], configuration.head_dim, configuration.family
    )
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")}
    constants = {
        "VISITS": visits,
        "HEAD_DIM": configuration.head_dim,
        "BLOCK_D": triton.next_power_of_2(configuration.head_dim),
        "CAUSAL": configuration.is_causal,
        "CONTINUES": False,
        "ALIGNED": True,
        "UPCAST": False,
        "PRECISION": "ieee",
        **blocks,
    }
    start = time.perf_counter()
    compiled = triton.compile(
        _source(kernel, configuration, constants), target=TARGETS[configuration.family], options=options
    )
    seconds = time.perf_counter() - start
    registers, spilled = _resources(compiled.asm)
    return Usage(
        blocks="{BLOCK_ROWS}x{BLOCK_COLUMNS}, {num_warps}, {num_stages}".format(**blocks, **options),
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=spilled,
        matrix_instruction=_matrix_instruction(compiled.asm),
        seconds=seconds,
    )


def _source(kernel: Any, configuration: Configuration, constants: dict[str, Any]) -> ASTSource:
    """The kernel with its arguments' types, and those it is specialised on: aligned pointers and strides."""
    matrices = kernel.arg_names.index("lse")
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    aligned = [["tt.divisibility", 16]]
    for index, name in enumerate(kernel.arg_names):
        if index < matrices or name in ("lse", "delta"):
            signature[name] = f"*{configuration.dtype}" if index < matrices else "*fp32"
            attributes[index,] = aligned
        elif name == "padding" and configuration.is_padded:
            signature[name] = "*u8"
        elif name == "index" and configuration.is_indexed:
            signature[name] = Tables(*["*i32"] * len(Tables._fields))  # type: ignore[arg-type]
        elif name in ("padding", "index", "times"):
            signature[name], fixed[index,] = "constexpr", None
        elif name == "strides":
            signature[name] = (("i32", "i32"),) * matrices
            attributes |= {(index, i, j): aligned for i in range(matrices) for j in range(2)}
        elif name in Extent._fields:
            signature[name] = "i32"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in ("lse_row", "delta_row"):
            signature[name], fixed[index,] = "constexpr", 1
        elif name not in constants:
            signature[name] = "i64"  # strides that grow with the length
        else:
            signature[name], fixed[index,] = "constexpr", constants[name]
    return ASTSource(kernel, signature, fixed, attributes)


def _resources(asm: dict[str, Any]) -> tuple[int, int]:
    """Registers and spilled bytes of a thread."""
    if "amdgcn" in asm:
        numbers = [
            re.search(rf"\.{name}:\s+(\d+)", asm["amdgcn"])
            for name in ("vgpr_count", "private_segment_fixed_size")
        ]
    else:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(asm["cubin"])
            file.flush()
            printed = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        numbers = [re.search(rf"{name}:(\d+)", printed) for name in ("REG", "STACK")]
    first, second = (int(found[1]) for found in numbers if found is not None)
    return first, second


def _matrix_instruction(asm: dict[str, Any]) -> str:
    text = asm.get("ptx") or asm["amdgcn"]
    for name, sign in (
        ("tcgen05", "tcgen05.mma"),
        ("wgmma", "wgmma.mma"),
        ("mma", "mma.sync"),
        ("mfma", "v_mfma"),
    ):
        if sign in text:
            return name
    return "fma"


@benchmark(
    "triton-compile", numerics=("tests/dilated_attention_pytorch/kernels/triton/test_triton_attention.py",)
)
def measure(options: Options) -> list[Table]:
    """Registers, shared memory and spills of the Triton kernels, for four families of GPUs."""
    del options
    rows = []
    for configuration in every_configuration():
        usage = compile_ahead(configuration)
        named = asdict(configuration)
        progress(
            f"  {configuration.family} {configuration.kernel} {configuration.dtype} {configuration.head_dim}"
        )
        rows.append(
            [
                *(str(named[name]) for name in ("family", "kernel", "dtype", "head_dim", "pattern")),
                "causal" if configuration.is_causal else "full",
                usage.blocks,
                usage.matrix_instruction,
                str(usage.registers),
                f"{usage.shared_bytes / 1024:.1f}",
                str(usage.spilled_bytes),
            ]
        )
    columns = (
        "family",
        "kernel",
        "dtype",
        "d",
        "branches",
        "mask",
        "rows x columns, warps, stages",
        "products",
    )
    return [
        Table(
            title="Kernels compiled ahead of time, default blocks",
            columns=(*columns, "registers", "shared KiB", "spilled bytes"),
            rows=rows,
            note=f"Triton {triton.__version__}. Spilled: a thread's bytes of stack (AMD: of scratch memory).",
        )
    ]


def main() -> None:
    """Print what the representative configurations of one family take, as JSON."""
    found = [{**asdict(x), **asdict(compile_ahead(x))} for x in representative(sys.argv[1])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
