"""Every path, link and reference in the documents, the docstrings and the comments leads somewhere."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = {".git", ".venv", "runs", "dist", "build", "output"}
FILES = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob("*"))
    if path.is_file() and not {*path.relative_to(ROOT).parts} & SKIPPED
]
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
SOURCES = [path for path in FILES if path.suffix == ".py"]
# Files that the programs write, or that stand for any of their kind.
WRITTEN = {
    "attempt.json",
    "attempts/N.json",
    "checkpoint.pt",
    "config.json",
    "demos/output",
    "end.json",
    "example.py",
    "fast.py",
    "gpt2.json",
    "hang.json",
    "job.json",
    "loss.png",
    "metrics.jsonl",
    "model.py",
    "native.json",
    "neuromorphic_simulation.json",
    "profile.json",
    "records/attempt-N/rank-R.json",
    "script.json",
    "script.sh",
    "topology.svg",
    "trace.json",
    "trace.jsonl",
    "train.py",
}
PATH = re.compile(r"(?<![\w./{<-])((?:[\w*.-]+/)*[\w*-]+\.(?:py|md|sh|json|png|svg|yml|toml|cff))(?![\w/])")
FOLDER = re.compile(r"(?<![\w./-])((?:src|tests|docs|benchmarks|demos|examples)/[\w*./-]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[\w-]+)?\)")
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`[~.]*([\w.]+)`")


def prose_of(path: Path) -> Iterator[str]:
    """The docstrings and the comments of a Python file."""
    text = (ROOT / path).read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def is_there(name: str, near: Path) -> bool:
    """Whether a path exists as people write it: from the root, from ``near``, or the end of a file's path."""
    pattern = name.rstrip("/").replace("*", "[^/]*")
    if (ROOT / name).exists() or (ROOT / near.parent / name).exists():
        return True
    ends = re.compile(rf"(^|/){pattern}$")
    return any(ends.search(str(path)) or ends.search(str(path.parent)) for path in FILES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_of_documents(document: Path):
    for link in LINK.findall((ROOT / document).read_text()):
        assert (ROOT / document.parent / link).exists(), f"{document} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_paths_in_documents(document: Path):
    text = (ROOT / document).read_text()
    missing = {name for name in (*PATH.findall(text), *FOLDER.findall(text)) if not is_there(name, document)}
    assert missing - WRITTEN == set()


def test_paths_in_docstrings_and_comments():
    missing = {
        (str(source), name)
        for source in SOURCES
        for prose in prose_of(source)
        for name in (*PATH.findall(prose), *FOLDER.findall(prose))
        if name not in WRITTEN and not is_there(name, source)
    }
    assert missing == set()


def test_references_in_docstrings():
    defined = {module.stem for module in SOURCES} | {module.parent.name for module in SOURCES}
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                defined.add(node.id if isinstance(node, ast.Name) else node.attr)
    missing = {
        (str(source), name)
        for source in SOURCES
        for prose in prose_of(source)
        for name in ROLE.findall(prose)
        if name.rpartition(".")[2] not in defined and not name.startswith(("torch.", "msgspec."))
    }
    assert missing == set()


def files_by_folder() -> dict[Path, list[Path]]:
    """The files of each folder below the root, but for what programs leave behind and a README."""
    folders = defaultdict(list)
    for path in FILES:
        made = {part for part in path.parts if part.startswith(".") or part.endswith((".egg-info", "__"))}
        if len(path.parts) > 1 and not made and path.name != "README.md":
            folders[path.parent].append(path)
    return folders


LARGE = [
    folder
    for folder, files in files_by_folder().items()
    if len(files) > 5 and not folder.is_relative_to("tests/support/old_project")  # someone else's, made up
]


@pytest.mark.parametrize("folder", LARGE, ids=str)
def test_a_folder_of_more_than_five_files_has_a_short_readme(folder: Path):
    readme = ROOT / folder / "README.md"
    assert readme.exists(), f"{folder} has more than five files: CONTRIBUTING.md says what its README holds"
    assert len(readme.read_text().splitlines()) <= 30
    rows = [line.split("|")[1] for line in readme.read_text().splitlines() if line.startswith("|")]
    named = {name for cell in rows for name in (*PATH.findall(cell), *re.findall(r"`([\w./]+/)`", cell))}
    assert {name for name in named if not list(readme.parent.glob(name))} == set(), "not in this folder"


def test_large_folders_are_found():
    assert {Path("tests/support"), Path("docs"), Path("src/kernel_pytorch/jobs/node")} <= {*LARGE}
