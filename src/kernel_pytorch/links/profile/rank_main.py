"""What runs in a rank instead of the user's script: the script, with every process group a recording one.

``python -m kernel_pytorch.links.profile.rank_main FOLDER OPTIONS script|module NAME ARGUMENTS``; options are
``plain`` or ``check``, with ``+report`` if rank 0 is to report when all ranks have ended.
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import importlib.util
import inspect
import io
import os
import runpy
import sys
import time
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .batches import keep_batches
from .recorder import Recorder

_GROUPS = "torch.distributed.distributed_c10d"
_OWN = (__file__, runpy.__file__, "<frozen runpy>")
_PATIENCE_S = 10.0
"""How long rank 0 waits for the last lines of the other ranks."""


class Job:
    """The recording of this rank."""

    def __init__(self, folder: Path, *, check: bool, reports: bool) -> None:
        self.recorder = Recorder(folder)
        self.error: str | None = None
        """What the script ended with."""
        self._check, self._reports = check, reports
        self._watch: Any = None
        self._marks_steps: object = None

    def begin(self) -> None:
        """Have torch make recording groups, as soon as it is imported; the script decides when that is."""
        if _GROUPS in sys.modules:
            record_groups(sys.modules[_GROUPS], self.replace)
        else:
            sys.meta_path.insert(0, _AfterImport(_GROUPS, lambda made: record_groups(made, self.replace)))
        atexit.register(self.end)

    def replace(self, group: Any, ranks: Sequence[int], timeout: Any) -> Any:
        """The recording group that takes the place of one that torch has just made."""
        from .group import recording
        from .watch import Watch
        from .world import describe

        recorded = recording(
            self.recorder, group, check=self._check, in_place=True, ranks=list(ranks), timeout=timeout
        )
        if self._watch is None:
            self._watch = Watch(self.recorder, describe(recorded)[0])
            self._mark_steps()
        return recorded

    def _mark_steps(self) -> None:
        """A step of the job ends with one of the optimizer that steps first."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        def stepped(optimizer: object, *_: object) -> None:
            if self._marks_steps is None:
                self._marks_steps = optimizer
            if optimizer is self._marks_steps:
                self.recorder.step()

        register_optimizer_step_post_hook(stepped)

    def end(self) -> None:
        """At the exit of the process, when its threads and its other functions for that have ended."""
        header = self.recorder.header
        if header is None or header.pid != os.getpid():  # no group was made, or this is a fork
            return
        if self._watch is not None:
            self._watch.close()
        self.recorder.close(self.error)
        if self._reports and header.rank == 0:
            _report(self.recorder)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls ``action`` with a module once that has been imported."""

    def __init__(self, name: str, action: Callable[[types.ModuleType], None]) -> None:
        self._name, self._action = name, action

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                self._action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def record_groups(module: types.ModuleType, replace: Callable[[Any, Sequence[int], Any], Any]) -> None:
    """Have ``replace(group, ranks, timeout)`` give the group that takes the place of each new one.

    Args:
        module: ``torch.distributed.distributed_c10d``, of which the other modules have not imported yet.
    """
    names: Any = module
    make, split = names._new_process_group_helper, names.split_group
    signature = inspect.signature(make)

    @functools.wraps(make)
    def new_group(*args: Any, **named: Any) -> Any:
        made, store = make(*args, **named)
        if not isinstance(made, names.ProcessGroup):  # this rank is not part of it
            return made, store
        given = signature.bind(*args, **named).arguments
        ranks = given["global_ranks_in_group"] or range(given["group_size"])
        return replace(made, ranks, given.get("timeout")), store

    @functools.wraps(split)
    def split_group(*args: Any, **named: Any) -> Any:
        made = split(*args, **named)
        if not isinstance(made, names.ProcessGroup):
            return made
        return replace(made, names.get_process_group_ranks(made), None)

    names._new_process_group_helper, names.split_group = new_group, split_group
    keep_batches(names)


def run_script(name: str, arguments: Sequence[str]) -> None:
    """What ``python NAME ARGUMENTS`` does."""
    path = os.path.abspath(name)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {name!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = main
    sys.argv[:] = [name, *arguments]
    sys.path[0] = os.path.dirname(os.path.realpath(name))
    exec(compile(source, path, "exec"), main.__dict__)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """What ``python -m NAME ARGUMENTS`` does."""
    sys.argv[:] = [name, *arguments]
    sys.path[0] = os.getcwd()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _report(recorder: Recorder) -> None:
    """On rank 0, when the other ranks have written their last lines, or have been killed."""
    from .job import report_of
    from .record import rank_file

    header, folder = recorder.header, recorder.folder
    assert header is not None
    assert folder is not None
    until = time.monotonic() + _PATIENCE_S
    missing = set(range(header.world_size))
    while missing and time.monotonic() < until:
        for rank in list(missing):
            with suppress(OSError):
                lines = (folder / rank_file(rank, header.restart)).read_bytes().rstrip().rsplit(b"\n", 1)
                if b'"type":"end"' in lines[-1]:
                    missing.discard(rank)
        time.sleep(0.05)
    print(report_of(folder), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the user's script or module."""
    folder, options, kind, name, *rest = arguments
    kinds = options.split("+")
    job = Job(Path(folder).absolute(), check="check" in kinds, reports="report" in kinds)
    job.begin()
    sys.excepthook = _without_own_frames(sys.excepthook)
    try:
        (run_module if kind == "module" else run_script)(name, rest)
    except SystemExit as exit:
        if exit.code not in (None, 0):
            job.error = f"exit status {exit.code}"
        raise
    except BaseException as error:
        job.error = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise


def _without_own_frames(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Show a traceback as python would have shown it."""

    def excepthook(kind: Any, error: Any, trace: types.TracebackType | None) -> None:
        while trace is not None and trace.tb_frame.f_code.co_filename in _OWN:
            trace = trace.tb_next
        hook(kind, error if error is None else error.with_traceback(trace), trace)

    return excepthook


if __name__ == "__main__":
    main(sys.argv[1:])
