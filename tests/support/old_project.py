"""Lays out the project of ``tests/support/old_project/``."""

from __future__ import annotations

import codecs
from pathlib import Path

_FILES = Path(__file__).with_name("old_project")
BROKEN, LATIN, CRLF, BOM = (f"ringlab/extras/{name}.py" for name in ("broken", "french", "windows", "marked"))


def lay_out(folder: Path) -> None:
    """Write the project with its encodings and line ends, a script that may be run, and a link."""
    for source in _FILES.rglob("*.txt"):
        name = source.relative_to(_FILES).with_suffix("")
        content = source.read_bytes()
        if str(name) == LATIN:
            content = content.decode().encode("latin-1")
        elif str(name) == CRLF:
            content = content.replace(b"\n", b"\r\n")
        elif str(name) == BOM:
            content = codecs.BOM_UTF8 + content
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "train.py").chmod(0o755)
    (folder / "ringlab/orchestrate.py").symlink_to("jobs.py")
