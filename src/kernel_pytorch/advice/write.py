"""What was kept, as a Python file that needs torch and the user's own file. Without torch."""

from __future__ import annotations

import ast
import os
import re
import textwrap
from importlib import resources
from pathlib import Path

from ..jobs.atomic import write_atomically
from .facts import AdviceReport
from .lines import Lines
from .target import names_a_file
from .text import equality, result
from .units import interval, printable

_LOAD = '''\
def make_model():
    """The optimised model{call}."""
    return optimise(original())


def original():
    """A copy of what {name} of FILE is, or what it returns. Runs FILE."""
    module = sys.modules.get(FILE.stem)
    if pathlib.Path(getattr(module, "__file__", None) or "").resolve() != FILE:
        sys.path.insert(0, str(FILE.parent))  # as for a script
        spec = importlib.util.spec_from_file_location("original_" * (module is not None) + FILE.stem, FILE)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    made = module.{name}
    return copy.deepcopy(made) if isinstance(made, torch.nn.Module) else made()'''
_OPTIMISE = '''\
def optimise(model):
    """Change a model that has its weights already; return it, or what replaces it."""
    if {other}model.training:
        model.{mode}()
{body}
    return model'''
_OWN = ("FILE", "make_model", "original", "optimise")
_REWRITE = {"rewrite_attention", "attention_backend"}


def source_file(report: AdviceReport, target: str | None = None, path: Path | None = None) -> str:
    """Python that rebuilds the optimised model without this package.

    Args:
        target: FILE:NAME of the model or its factory; default: the report's. Where it names no file, the text
            has ``optimise`` alone, which changes a model that it is given.
        path: where the text is going to be; it then looks for FILE from there.

    Raises:
        ValueError: nothing was kept, or what was kept has no lines to write; the message says why.
    """
    target = report.target if target is None else target
    lines = _lines(report)
    file, _, name = target.rpartition(":") if names_a_file(target) else ("", "", "")
    imports = lines.imports("torch", *(("copy", "importlib.util", "pathlib", "sys") if file else ()))
    parts = [f'"""{_docstring(report)}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(imports)]
    if file:
        call = "" if report.options.training else "; call it under torch.no_grad()"
        parts[0] += f"\n\nFILE = {_place(Path(file.strip()), path)}"
        parts.append(_LOAD.format(name=name, call=call))
    body = textwrap.indent("\n".join(lines.body), "    ")
    mode, other = ("train", "not ") if report.options.training else ("eval", "")
    parts += [*lines.definitions.values(), _OPTIMISE.format(mode=mode, other=other, body=body)]
    if lines.names & _REWRITE:
        text = _rewrite()
        if twice := lines.definitions.keys() & _defined(text):
            raise ValueError(f"{', '.join(sorted(twice))}: defined by a strategy and by the attention pass")
        parts.append(text)
    return "\n\n\n".join(parts) + "\n"


def save(report: AdviceReport, path: str | os.PathLike[str], target: str | None = None) -> None:
    """Write :func:`source_file` to a file, whole or not at all.

    Raises:
        ValueError: there is nothing to write, or ``path`` is the user's own file.
        JobFolderError: ``path`` cannot be written; it is as it was.
    """
    path, target = Path(path).resolve(), report.target if target is None else target
    if names_a_file(target):
        own = Path(target.rpartition(":")[0].strip())
        if path == own.resolve() or (path.exists() and own.exists() and path.samefile(own)):
            raise ValueError(f"{path} would overwrite the file of the original model")
    write_atomically(path, source_file(report, target, path).encode(), 0o666)


def _lines(report: AdviceReport) -> Lines:
    if not report.kept:
        raise ValueError(result(report))
    lines = Lines(taken=_OWN)
    for trial in report.kept:
        if not trial.source:
            raise ValueError(f"{trial.strategy} cannot be written: it gives no source")
        try:
            lines.add(trial.strategy, trial.source)
        except (SyntaxError, ValueError) as failed:
            raise ValueError(f"{trial.strategy} cannot be written: {failed}") from failed
    return lines


def _docstring(report: AdviceReport) -> str:
    machine, found = report.machine, report.result
    assert found is not None
    where = "in a fresh process" if report.confirmed else "in one process"
    inputs = ", ".join(f"{each.name}: {each.dtype} {list(each.shape)}" for each in report.facts.inputs)
    what = "a training step" if report.options.training else "a call"
    entries = [
        f"{report.target}: {interval(found.gain, found.low, found.high)} times as fast.",
        "",
        f"Measured: {what}, {where}, on {machine.processor}, {machine.device}, {machine.threads} threads, "
        f"torch {machine.torch}, {machine.date}, inputs {inputs}.",
        f"Equal: {equality(report, found)}.",
        f"Changes: {', '.join(trial.strategy for trial in report.kept)}.",
        "Load weights into the original and give it to optimise(): a change may join or rename parameters.",
    ]
    wrapped = (textwrap.fill(printable(entry), 108, subsequent_indent="    ") for entry in entries)
    return "\n".join(wrapped).replace("\\", "\\\\").replace('"', "'") + "\n"


def _place(file: Path, path: Path | None) -> str:
    """An expression for where a file is: from where the text is, if both are in one folder or nearly."""
    file = file.resolve()
    if path is not None:
        near = os.path.relpath(file, path.resolve().parent)
        if near.count(os.pardir) <= 1:
            return f"(pathlib.Path(__file__).resolve().parent / {near!r}).resolve()"
    return f"pathlib.Path({str(file)!r})"


def _rewrite() -> str:
    """The text of ``attention_rewrite.py``, without the line that must be a file's first."""
    found = resources.files("kernel_pytorch.advice.strategy").joinpath("attention_rewrite.py")
    text = found.read_text(encoding="utf-8")
    return re.sub(r"(?m)^from __future__ import annotations\n\n?", "", text).strip("\n")


def _defined(text: str) -> set[str]:
    return {node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
