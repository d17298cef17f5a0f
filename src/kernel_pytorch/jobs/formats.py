"""JSON and YAML as plain values. What readers usually guess or drop is refused."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NoReturn

from ..errors import Unavailable


def read_json(data: bytes, name: str) -> Any:
    """The content of a JSON file. Bytes and escapes that are not Unicode are kept by ``surrogateescape``.

    msgspec's own decoder refuses those, and takes the last of two equal keys.

    Args:
        data: the file's bytes.
        name: of the file; here for :func:`read_yaml`'s sake.

    Raises:
        ValueError: it is not JSON, a key is there twice, or a number is not finite.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def read_yaml(data: bytes, name: str) -> Any:
    """The content of a YAML file. Plain words are strings but for true, false, null and decimal numbers.

    PyYAML by itself follows YAML 1.1, where ``2:4`` is 124, ``on`` is true and ``010`` is 8.

    Args:
        data: the file's bytes.
        name: of the file.

    Raises:
        Unavailable: PyYAML is not installed.
        ValueError: it is not YAML, a key is there twice, or it has aliases or tags.
    """
    try:
        import yaml
    except ImportError as error:
        raise Unavailable(f"{name} is YAML, and PyYAML is not installed", "pip install pyyaml") from error
    try:
        return yaml.load(data, _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        text = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{place}{text}") from error


@cache
def _loader() -> Any:
    import re

    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (add_implicit_resolver fills it)

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"key {key.value!r} is there twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    digits = "+-.0123456789"
    # Each a part of YAML 1.1's, or strings that writers of that version leave unquoted would not be strings.
    for tag, pattern, first in (
        ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", "[-+]?(?:0|[1-9][0-9]*)", digits),
        ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?", digits),
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))
    return Loader
