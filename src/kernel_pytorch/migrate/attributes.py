"""Old modules and names that are used as attributes. Imports libcst."""

from __future__ import annotations

import libcst as cst
from libcst import metadata

from ..legacy import MOVED, RENAMED, Renamed
from .file import ParsedFile
from .names import IMPORTS, dotted
from .statements import insert_before
from .table import LEAVES, advice, home_of, package_has, package_of, renamed


class AttributeRewriter(cst.CSTVisitor):
    """Rewrite ``package.old_module.name`` and ``module.OldName``.

    Args:
        file: the file; gets the edits and notes.
    """

    def __init__(self, file: ParsedFile) -> None:
        super().__init__()
        self._file = file
        self._stars: set[str] = set()

    def visit_Import(self, node: cst.Import) -> bool:
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        if isinstance(node.names, cst.ImportStar) and not node.relative:
            self._stars.add(dotted(node.module))
        return False

    def visit_Name(self, node: cst.Name) -> None:
        now = RENAMED.get(node.value)
        if now is None or not self._stars.intersection(now.modules):
            return
        parent = self._file.names.parent_of(node)
        if isinstance(parent, cst.Attribute) and parent.attr is node:
            return
        if self._file.is_read(node) and not self._file.names.assignments(node, node.value):
            self._file.note(
                node,
                f"import * does not import {node.value}: "
                f"write from {now.home} import {now.new} as {node.value}",
            )

    def visit_Attribute(self, node: cst.Attribute) -> None:
        name, chain = node.attr.value, dotted(node)
        if chain and not self._file.is_read(node):
            module = self._file.names.meaning(node, chain.rpartition(".")[0])
            if module in MOVED:
                self._file.note_patch(node, f"{package_of(module)}.{name}", f"{module}.{name}")
        if not chain or (name not in LEAVES and name not in RENAMED):
            return
        meanings = self._file.names.meanings(node, chain)
        old = [path for path in meanings if path in MOVED or renamed(path.rpartition(".")[0], name)]
        if old and len(meanings) > 1:
            self._file.kept.update(old)
            self._file.note(
                node, f"{chain} is not rewritten: {chain.partition('.')[0]} may be something else here"
            )
        elif old and old[0] in MOVED:
            self._through_package(node, old[0])
        elif old:
            module = old[0].rpartition(".")[0]
            if RENAMED[name].same:
                self._rename(node, module, RENAMED[name])
            else:
                self._file.note(node, advice(module, name))

    def _through_package(self, node: cst.Attribute, moved: str) -> None:
        """Drop the old module from a chain: the package has its names."""
        start, end = self._file.start(node.dot), self._file.end(node.attr)
        if not self._file.is_read(node) or b"#" in self._file.source[start:end]:
            self._file.note(node, f"{moved} is not rewritten: write {package_of(moved)}")
            self._file.kept.add(moved)
            return
        self._file.changes.replace(start, end, "")
        parent = self._file.names.parent_of(node)
        if isinstance(parent, cst.Attribute) and not package_has(moved, name := parent.attr.value):
            self._file.note(node, f"{moved} has no public name {name}; {package_of(moved)} may not have it")

    def _rename(self, node: cst.Attribute, module: str, now: Renamed) -> None:
        home, root = home_of(module, now), dotted(node).partition(".")[0]
        read = self._file.is_read(node)
        if home == module and read:
            self._file.replace(node.attr, now.new)
            return
        path, new = self._file.names.meaning(node, root), ""
        if read and self._file.code(node) == dotted(node):
            if home.startswith(f"{path}."):
                new = f"{root}{home.removeprefix(path)}.{now.new}"
            else:
                new = self._imported(node, root, home, now.new)
        if new:
            self._file.replace(node, new)
        else:
            self._file.note(node, f"{dotted(node)} is not rewritten: write from {home} import {now.new}")

    def _imported(self, node: cst.Attribute, root: str, home: str, new: str) -> str:
        """``new``, imported beside what binds ``root``; empty if that might hide another ``new``."""
        names = self._file.names
        if names.meaning(node, new) in (f"{home}.{new}", f"{home.partition('.')[0]}.{new}"):
            return new
        binding = [one for one in names.assignments(node, root) if isinstance(one, metadata.Assignment)]
        statement = binding[0].node
        if len(binding) > 1 or not isinstance(statement, IMPORTS) or new in names.used:
            return ""
        if names.scope_of(statement) is not binding[0].scope:
            return ""
        insert_before(self._file, statement, [f"from {home} import {new}"])
        return new
