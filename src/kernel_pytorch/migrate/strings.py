"""Old modules and names in strings. Imports libcst."""

from __future__ import annotations

import importlib.util
import re

import libcst as cst
from libcst import metadata

from ..legacy import MOVED, RENAMED
from .file import ParsedFile
from .names import dotted
from .table import WORDS, Now, advice, lookup, package_of, renamed

_CHAIN = re.compile(r"(?<![\w.])[^\W\d]\w*(?:\.\w+)+")
_PATCHES = {"unittest.mock.patch", "mock.patch"}
_SETTERS = {"object", "setattr", "delattr"}
_FIXTURE = {"monkeypatch.setattr", "monkeypatch.delattr"}


class StringRewriter(cst.CSTVisitor):
    """Rewrite what ``import_module``, ``mock.patch`` and ``monkeypatch`` are given; note other strings.

    Args:
        file: the file; gets the edits and notes.
    """

    def __init__(self, file: ParsedFile) -> None:
        super().__init__()
        self._file = file

    def visit_Call(self, node: cst.Call) -> None:
        """Note ``patch.object(old_module, "name")`` and the like, which patch the package instead."""
        if len(node.args) > 1 and dotted(node.func).rpartition(".")[2] in _SETTERS:
            module = self._file.names.meaning(node, dotted(node.args[0].value))
            if module in MOVED:
                self._file.note_patch(node, package_of(module), module)

    def visit_FormattedStringText(self, node: cst.FormattedStringText) -> None:
        self._mention(node, node.value)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        value = node.evaluated_value
        if not isinstance(value, str) or not WORDS.search(value.encode(errors="replace")):
            return
        parent = self._file.names.parent_of(node)
        if isinstance(parent, cst.Expr):  # documentation
            return
        call = self._file.names.parent_of(parent) if isinstance(parent, cst.Arg) else None
        if not (isinstance(call, cst.Call) and isinstance(parent, cst.Arg) and self._of(call, parent, node)):
            self._mention(node, value)

    def _of(self, call: cst.Call, argument: cst.Arg, node: cst.SimpleString) -> bool:
        """Rewrite or note the argument of a call; False if the call is none of those that are known."""
        function, value = self._file.names.meaning(call.func, dotted(call.func)), str(node.evaluated_value)
        first = argument is call.args[0] and argument.keyword is None
        keyword = argument.keyword.value if argument.keyword is not None else ""
        now = lookup(value)
        if function == "importlib.import_module":
            if (first or keyword == "name") and now is not None and now.name is None:
                return self._rewrite(node, value, now)
            return first and self._relative(call, node, value)
        patches = function in _PATCHES or self._is_fixture(call.func)
        if patches and now is not None and now.name is not None and (first or keyword == "target"):
            return self._rewrite(node, value, now)
        if argument is not call.args[0] and argument is call.args[1] and value.isidentifier():
            self._mention(node, f"{dotted(call.args[0].value)}.{value}")  # as of getattr
        return False

    def _rewrite(self, node: cst.SimpleString, value: str, now: Now) -> bool:
        if node.raw_value != value:
            return False
        start = self._file.start(node) + len(node.prefix) + len(node.quote)
        self._file.changes.replace(start, start + len(value), now.path)
        if now.name is not None:
            self._file.note_patch(node, now.path, value)
        return True

    def _is_fixture(self, function: cst.BaseExpression) -> bool:
        chain = dotted(function)
        bindings = self._file.names.assignments(function, chain.partition(".")[0])
        return chain in _FIXTURE and all(
            isinstance(one, metadata.Assignment) and isinstance(one.node, cst.Param) for one in bindings
        )

    def _relative(self, call: cst.Call, node: cst.SimpleString, value: str) -> bool:
        """Note ``import_module(".old", package="...")``."""
        packages = [argument.value for argument in call.args[1:]]
        if not value.startswith(".") or not packages or not isinstance(packages[0], cst.SimpleString):
            return False
        try:
            path = importlib.util.resolve_name(value, str(packages[0].evaluated_value))
        except ImportError:  # above the top-level package
            return False
        if path in MOVED:
            self._file.note(node, f"{path} is now {package_of(path)}")
        return True

    def _mention(self, node: cst.CSTNode, text: str) -> None:
        """Note the old paths in a string, whole or beginning with a variable, as in an annotation."""
        for chain in _CHAIN.findall(text):
            bound = self._file.names.meanings(node, chain)
            for path in sorted({chain, *bound}):
                parts = path.split(".")
                variable = len(parts) - chain.count(".")  # components; an old module there is the new one
                for end in range(max(2, variable + 1), len(parts) + 1):
                    old, name = ".".join(parts[:end]), parts[end - 1]
                    if old in MOVED:
                        self._file.kept |= {old} if path in bound else set()
                        self._file.note(node, f"a string names {old}, which is now {package_of(old)}")
                    elif renamed(module := old.rpartition(".")[0], name):
                        self._file.note(node, f"in a string: {self._advice(module, name)}")

    def _advice(self, module: str, name: str) -> str:
        now = RENAMED[name]
        return f"{module}.{name} is now {now.home}.{now.new}" if now.same else advice(module, name)
