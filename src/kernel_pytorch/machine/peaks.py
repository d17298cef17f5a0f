"""Vendors' peak figures of their accelerators, by the name that the driver reports.

Dense, without sparsity; on tensor or matrix cores where there are any, accumulating in float32.
"""

from __future__ import annotations

from .facts import Peaks

_H100 = "NVIDIA H100 Tensor Core GPU datasheet (dense: half of the figures with sparsity)"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet (dense: half of the figures with sparsity)"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_V100 = "NVIDIA V100 Tensor Core GPU datasheet"
_ADA = "NVIDIA L4 and L40S datasheets (dense: half of the figures with sparsity)"
_RTX = "NVIDIA Ada GPU architecture whitepaper, appendix A (sums in float32)"
_AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper (sums in float32)"
_A10 = "NVIDIA A10 datasheet"
_MI300 = "AMD Instinct MI300X datasheet"
_MI210 = "AMD Instinct MI210 datasheet"
_MI250X = "AMD Instinct MI250X datasheet (half of it: each of its two dies is a device)"


def _peaks(source: str, memory_gb_s: float, **teraflops: float) -> Peaks:
    return Peaks(flops={t: n * 1e12 for t, n in teraflops.items()}, memory_gb_s=memory_gb_s, source=source)


def _half(source: str, memory_gb_s: float, float32: float, tf32: float, half: float, **more: float) -> Peaks:
    return _peaks(source, memory_gb_s, float32=float32, tf32=tf32, bfloat16=half, float16=half, **more)


_TABLE = {
    "NVIDIA H100 80GB HBM3": _half(_H100, 3350, 67, 494.5, 989.5, float8=1979),
    "NVIDIA H100 PCIe": _half(_H100, 2000, 51, 378, 756.5, float8=1513),
    "NVIDIA H100 NVL": _half(_H100, 3900, 60, 417.5, 835.5, float8=1670.5),
    "NVIDIA H200": _half(_H200, 4800, 67, 494.5, 989.5, float8=1979),
    "NVIDIA H200 NVL": _half(_H200, 4800, 60, 417.5, 835.5, float8=1670.5),
    "NVIDIA A100-SXM4-40GB": _half(_A100, 1555, 19.5, 156, 312),
    "NVIDIA A100-SXM4-80GB": _half(_A100, 2039, 19.5, 156, 312),
    "NVIDIA A100-PCIE-40GB": _half(_A100, 1555, 19.5, 156, 312),
    "NVIDIA A100 80GB PCIe": _half(_A100, 1935, 19.5, 156, 312),
    "Tesla V100-SXM2-16GB": _peaks(_V100, 900, float32=15.7, float16=125),
    "Tesla V100-SXM2-32GB": _peaks(_V100, 900, float32=15.7, float16=125),
    "NVIDIA L4": _half(_ADA, 300, 30.3, 60, 121, float8=242.5),
    "NVIDIA L40S": _half(_ADA, 864, 91.6, 183, 362, float8=733),
    "NVIDIA A10": _half(_A10, 600, 31.2, 62.5, 125),
    "NVIDIA GeForce RTX 4090": _half(_RTX, 1008, 82.6, 82.6, 165.2, float8=330.3),
    "NVIDIA GeForce RTX 3090": _half(_AMPERE, 936, 35.6, 35.6, 71),
    "AMD Instinct MI300X": _half(_MI300, 5300, 163.4, 653.7, 1307.4, float8=2614.9),
    "AMD Instinct MI250X": _peaks(_MI250X, 1638.4, float32=47.85, bfloat16=191.5, float16=191.5),
    "AMD Instinct MI210": _peaks(_MI210, 1638.4, float32=45.3, bfloat16=181, float16=181),
}


def peaks_of(name: str) -> Peaks | None:
    """The peaks of the accelerator with the driver's ``name``; None if it is not in the table."""
    return _TABLE.get(name)
