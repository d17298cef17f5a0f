"""Import statements. Imports libcst."""

from __future__ import annotations

import libcst as cst

from ..legacy import MOVED
from .file import ParsedFile
from .names import aliases, bound_name, module_of
from .statements import drop, insert_before, replace
from .table import advice, home_of, package_has, package_of, renamed


class ImportRewriter(cst.CSTVisitor):
    """Rewrite the import statements of a file, when the visitors of its uses have run.

    Args:
        file: the file; gets the edits and notes.
    """

    def __init__(self, file: ParsedFile) -> None:
        super().__init__()
        self._file = file

    def visit_Import(self, node: cst.Import) -> bool:
        plain = {alias.evaluated_name for alias in node.names if alias.asname is None}
        gone = []
        for alias in node.names:
            path = alias.evaluated_name
            if path not in MOVED:
                continue
            package = package_of(path)
            if alias.asname is None and path in self._file.kept:
                self._file.note(node, f"import {path} stays: a use of it is not rewritten")
            elif alias.asname is None and package in plain:
                gone.append(alias)
            else:
                self._file.replace(alias.name, package)
                plain |= {package} if alias.asname is None else set()
        if gone:
            drop(self._file, node, gone)
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        module = module_of(node)
        if module in MOVED:
            self._from_moved(node, module)
        elif module:
            self._from_other(node, module)
        return False

    def _from_moved(self, node: cst.ImportFrom, module: str) -> None:
        package = package_of(module)
        if isinstance(node.names, cst.ImportStar):
            self._file.note(node, f"import * from {module} is not rewritten: import the names from {package}")
            return
        missing = [name for alias in node.names if not package_has(module, name := alias.evaluated_name)]
        if missing:
            self._file.note(node, f"{package} has no {', '.join(missing)}: rewrite the import from {module}")
        elif node.module is not None:
            self._file.replace(node.module, package)

    def _from_other(self, node: cst.ImportFrom, module: str) -> None:
        elsewhere: dict[cst.ImportAlias, str] = {}
        for alias in aliases(node):
            name, bound = alias.evaluated_name, bound_name(alias)
            if f"{module}.{name}" in MOVED:
                elsewhere[alias] = f"import {module} as {bound}"
            now = renamed(module, name)
            if now is None:
                continue
            home = home_of(module, now)
            if not now.same:
                self._file.note(node, advice(module, name))
            elif home == module:
                self._file.replace(alias.name, now.new if alias.asname else f"{now.new} as {name}")
            else:
                suffix = "" if bound == now.new else f" as {bound}"
                elsewhere[alias] = f"from {home} import {now.new}{suffix}"
        if elsewhere:
            self._split(node, elsewhere)

    def _split(self, node: cst.ImportFrom, elsewhere: dict[cst.ImportAlias, str]) -> None:
        """Import some names by statements of their own."""
        new = list(elsewhere.values())
        if len(elsewhere) == len(aliases(node)):
            done = replace(self._file, node, new)
        else:
            done = drop(self._file, node, list(elsewhere))
            if done:
                insert_before(self._file, node, new)
        if not done:
            self._file.note(node, f"not rewritten because of its comments: write {'; '.join(new)}")
