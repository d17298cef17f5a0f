"""What a name or a chain of attributes stands for, by the imports that bind it. Imports libcst."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst
from libcst import metadata

IMPORTS = (cst.Import, cst.ImportFrom)


def aliases(statement: cst.Import | cst.ImportFrom) -> list[cst.ImportAlias]:
    """What a statement imports; nothing for ``*``."""
    return [] if isinstance(statement.names, cst.ImportStar) else list(statement.names)


def dotted(node: cst.CSTNode | None) -> str:
    """A name or a chain of attributes of a name as text; empty for anything else."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr.value}"
    return ""


def module_of(statement: cst.ImportFrom) -> str:
    """The module from which names are imported; empty if it is relative."""
    return "" if statement.relative else dotted(statement.module)


def bound_name(alias: cst.ImportAlias) -> str:
    """The variable that an import binds."""
    return alias.evaluated_alias or alias.evaluated_name.partition(".")[0]


class Names:
    """The bindings of one file.

    Args:
        wrapper: the file.
    """

    def __init__(self, wrapper: metadata.MetadataWrapper) -> None:
        self._scopes = wrapper.resolve(metadata.ScopeProvider)
        self._parents = wrapper.resolve(metadata.ParentNodeProvider)
        seen = _Seen()
        wrapper.module.visit(seen)
        self._captured = seen.captured
        self.used = seen.used
        """All variables of the file."""

    def scope_of(self, node: cst.CSTNode) -> metadata.Scope | None:
        """The scope in which a node is evaluated; None if unknown."""
        return self._scopes.get(node)

    def parent_of(self, node: cst.CSTNode) -> cst.CSTNode:
        """The node around a node that is not the module."""
        return self._parents[node]

    def assignments(self, node: cst.CSTNode, name: str) -> list[metadata.BaseAssignment]:
        """All that may bind ``name`` as it is seen from ``node``, wherever in its scope."""
        scope = self.scope_of(node)
        return [] if scope is None else list(scope[name])

    def meanings(self, node: cst.CSTNode, chain: str) -> set[str]:
        """Dotted paths for which a chain such as ``np.random.rand`` may stand, seen from ``node``.

        Empty for a chain that no import binds; ``""`` is among them if it may be anything else. A variable
        that is None elsewhere, as after ``except ImportError``, has no attributes: that is left out.
        """
        root, dot, rest = chain.partition(".")
        found = {
            path and path + dot + rest
            for one in self.assignments(node, root)
            if (path := self._imported(one, root)) is not None
        }
        if root in self._captured:
            found.add("")
        return found if found != {""} else set()

    def meaning(self, node: cst.CSTNode, chain: str) -> str:
        """The only meaning of a chain; empty if there is none, or another."""
        found = self.meanings(node, chain)
        return found.pop() if len(found) == 1 else ""

    def _imported(self, one: metadata.BaseAssignment, root: str) -> str | None:
        """The path that an assignment imports, empty if it binds something else, None if it binds None."""
        if not isinstance(one, metadata.Assignment):
            return ""
        statement = one.node
        if not isinstance(statement, IMPORTS):
            return None if self._is_none(statement) else ""
        paths = [path for name, path in _bindings(statement) if name == root]
        return paths[-1] if paths else ""

    def _is_none(self, target: cst.CSTNode) -> bool:
        around: cst.CSTNode | None = self._parents.get(target)
        if isinstance(around, cst.AssignTarget):
            around = self._parents.get(around)
        value = around.value if isinstance(around, (cst.Assign, cst.AnnAssign)) else None
        return isinstance(value, cst.Name) and value.value == "None"


def _bindings(statement: cst.Import | cst.ImportFrom) -> Iterator[tuple[str, str]]:
    """Variables and the paths that they are bound to; empty paths for relative imports."""
    for alias in aliases(statement):
        name = bound_name(alias)
        if isinstance(statement, cst.ImportFrom):
            module = module_of(statement)
            yield name, f"{module}.{alias.evaluated_name}" if module else ""
        else:
            yield name, alias.evaluated_name if alias.asname else name


class _Seen(cst.CSTVisitor):
    """All variables, and those bound by ``match`` or ``:=``, which libcst's scopes leave out or misplace."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: set[str] = set()
        self.used: set[str] = set()

    def visit_Name(self, node: cst.Name) -> None:
        self.used.add(node.value)

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        node.value.visit(self)
        return False

    def visit_ImportAlias(self, node: cst.ImportAlias) -> bool:
        self.used.add(bound_name(node))
        return False

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        self._add(node.target)

    def visit_MatchAs(self, node: cst.MatchAs) -> None:
        self._add(node.name)

    def visit_MatchStar(self, node: cst.MatchStar) -> None:
        self._add(node.name)

    def visit_MatchMapping(self, node: cst.MatchMapping) -> None:
        self._add(node.rest)

    def _add(self, name: cst.BaseExpression | None) -> None:
        if isinstance(name, cst.Name):
            self.captured.add(name.value)
