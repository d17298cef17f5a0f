"""Lines of Python that strategies give, put together: imports, functions and classes, statements."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_BLOCKS = (ast.FunctionDef, ast.ClassDef)


class Lines:
    """What several strategies give, in their order.

    Args:
        taken: names that the file defines itself.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._modules: set[str] = set()
        self._members: dict[str, set[str]] = {}
        self.definitions: dict[str, str] = {}
        """Text of functions and classes by name."""
        self.body: list[str] = []
        """Statements, a comment with the strategy's name before each strategy's."""
        self.names: set[str] = set()
        """All that is used."""
        self._taken = frozenset(taken)

    def add(self, strategy: str, source: Sequence[str]) -> None:
        """Take in the lines of a strategy.

        Raises:
            SyntaxError: they are no Python.
            ValueError: they define a name that is taken, or was defined otherwise.
        """
        text = "\n".join(source)
        lines, begin = text.splitlines(), 0
        statements: list[str] = []
        for node in ast.parse(text).body:
            end = node.end_lineno or len(lines)
            block = lines[begin:end]  # with the comments before it
            begin = end
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
            elif isinstance(node, _BLOCKS):
                self._define(node.name, "\n".join(block).strip("\n"))
            else:
                statements += block
        statements += lines[begin:]  # comments
        self.names |= {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        while statements and not statements[0].strip():
            del statements[0]
        if statements:
            self.body += [f"# {strategy}", *statements]

    def imports(self, *others: str) -> list[str]:
        """All imports, in order, each once; ``others``: more modules."""
        modules = [f"import {name}" for name in sorted({*self._modules, *others})]
        members = sorted(self._members.items())
        return modules + [f"from {module} import {', '.join(sorted(names))}" for module, names in members]

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        names = {f"{each.name} as {each.asname}" if each.asname else each.name for each in node.names}
        if isinstance(node, ast.Import):
            self._modules |= names
        elif node.module is None or node.level:
            raise ValueError("a relative import has no meaning in another file")
        elif node.module != "__future__":
            self._members.setdefault(node.module, set()).update(names)

    def _define(self, name: str, text: str) -> None:
        if name in self._taken:
            raise ValueError(f"the name {name} is taken")
        if self.definitions.setdefault(name, text) != text:
            raise ValueError(f"{name} is defined in two ways")
