"""The machine in words, and the result as Markdown."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from .registry import Table


def hardware_name(device: torch.device) -> str:
    """The model name of the CPU or GPU that is measured."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def slug(text: str) -> str:
    """``text`` as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def document(topic: str, tables: list[Table], *, device: torch.device, command: str, date: str) -> str:
    """The result file: what was measured where, and the tables."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "date": date,
        "command": f"`{command}`",
        "hardware": hardware_name(device),
        "CPU cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads used",
        "memory": f"{memory / 1e9:.1f} GB",
        "torch": f"{torch.__version__}, CPU capability {torch.backends.cpu.get_cpu_capability()}",
    }
    if device.type == "cuda":
        facts["GPU memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
        facts["CUDA"] = str(torch.version.cuda)
    head = [f"# Benchmark: {topic}", "", *(f"* {name}: {value}" for name, value in facts.items())]
    return "\n".join([*head, *(f"\n{markdown(table)}" for table in tables)]) + "\n"


def markdown(table: Table) -> str:
    """The table under its title, columns aligned to be read as plain text too."""
    lines = [list(table.columns), *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    rows = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rows.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([f"## {table.title}", *([table.note] if table.note else []), "", *rows])
