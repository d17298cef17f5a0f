"""Old modules, names, methods and calls: they warn in this version, and are refused from 0.3.0 on."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from old_modules import not_imported

import kernel_pytorch
from dilated_attention_pytorch import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
)
from dilated_attention_pytorch.legacy import METHODS
from kernel_pytorch.legacy import MOVED, RENAMED, warn_or_refuse

BRANCHES = {"segment_lengths": [8], "dilation_rates": [1]}
SOURCES = Path(kernel_pytorch.__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Old:
    """Something that is deprecated."""

    use: Callable[[], object]
    now: tuple[str, ...]
    """What its message names."""
    warning: type[Warning]
    error: type[Exception]
    not_imported: str | None = None
    """Module that must be imported anew."""


def old_things() -> Iterator[tuple[str, Old]]:
    """Everything that is deprecated, by what a user would write."""
    for module, homes in MOVED.items():
        yield (
            f"import {module}",
            Old(
                use=lambda module=module: importlib.import_module(module),
                now=homes,
                warning=FutureWarning,
                error=ImportError,
                not_imported=module,
            ),
        )
    for name, renamed in RENAMED.items():
        for module in renamed.modules:
            line = f"from {module} import {name}"
            new = f"from {renamed.home} import {renamed.new}"
            yield (
                line,
                Old(
                    use=lambda line=line: exec(line, {}),
                    now=(new,),
                    warning=DeprecationWarning,
                    error=ImportError,
                ),
            )
    ring = RingDilatedAttention(RingAttentionConfig(**BRANCHES))
    for method, now in METHODS.items():
        use = getattr(ring, method)
        yield f"{method}()", Old(use=use, now=(now,), warning=DeprecationWarning, error=AttributeError)
    call = "RingAttentionConfig(segment_lengths=[8], dilation_rates=[1])"
    yield (
        "RingAttentionConfig by position",
        Old(
            use=lambda: RingAttentionConfig([8], [1]),
            now=(call,),
            warning=DeprecationWarning,
            error=TypeError,
        ),
    )
    for ring_class in (RingDilatedAttention, RingDilatedAttentionHilbert):
        yield (
            f"{ring_class.__name__} without a configuration",
            Old(
                use=lambda ring_class=ring_class: ring_class(**BRANCHES),
                now=(f"{ring_class.__name__}({call})",),
                warning=DeprecationWarning,
                error=TypeError,
            ),
        )


OLD = dict(old_things())


def use(old: Old) -> object:
    with ExitStack() as stack:
        if old.not_imported:
            stack.enter_context(not_imported(old.not_imported))
        return old.use()


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda version: monkeypatch.setattr(kernel_pytorch, "__version__", version)


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_now_it_warns_and_names_the_replacement(old: Old):
    with pytest.warns(old.warning, match=r" in v0\.3\.0$") as caught:
        use(old)
    (message,) = {str(warning.message) for warning in caught}  # Python asks a package twice for a name
    assert all(new in message for new in old.now)


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_from_0_3_0_on_it_is_refused_by_an_error_that_names_the_replacement(old: Old, version):
    version("0.3.0")
    with pytest.raises(old.error, match=r" in v0\.3\.0, this is 0\.3\.0$") as caught:
        use(old)
    assert all(new in str(caught.value) for new in old.now)


def test_a_refused_module_is_refused_each_time_and_its_contents_stay(version):
    version("0.3.0")
    module, homes = next(iter(MOVED.items()))
    with not_imported(module):
        for _ in range(2):
            with pytest.raises(ImportError, match=f"^{module} is now "):
                importlib.import_module(module)
    for home in homes:
        importlib.import_module(home)


@pytest.mark.parametrize(
    ("number", "removed"),
    [
        ("0.2.0", False),
        ("0.2.99", False),
        ("0.2", False),
        ("0.2.0+cpu", False),
        ("0.3", True),
        ("0.3.0", True),
        ("0.3.0rc1", True),
        ("0.3.0.dev4+g1a2b3c", True),
        ("0.3.1", True),
        ("0.10.0", True),
        ("1.0", True),
    ],
)
def test_versions_are_compared_as_numbers(number: str, removed: bool, version):
    version(number)
    with pytest.raises(TypeError if removed else DeprecationWarning, match=r"^a is now b; a is removed in v"):
        warn_or_refuse("a is now b; a is removed", DeprecationWarning, TypeError, stacklevel=1)


def test_nothing_else_is_deprecated():
    """Every warning of something old comes from one function, and each of its callers is used above."""
    texts = {str(path.relative_to(SOURCES)): path.read_text() for path in SOURCES.rglob("*.py")}

    def files(pattern: str) -> dict[str, int]:
        found = {name: len(re.findall(pattern, text)) for name, text in texts.items()}
        return {name: count for name, count in found.items() if count}

    callers = {
        "kernel_pytorch/legacy.py": 1,
        "dilated_attention_pytorch/legacy.py": 2,
        "dilated_attention_pytorch/ring_attention/config.py": 2,
    }
    assert files(r"(?<!def )\bwarn_or_refuse\(") == callers
    assert files(r"\b(?:Deprecation|Future)Warning[,)]") == callers
