"""A Slurm cluster as a target."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import KernelPytorchError
from ..facts import JobState
from ..folder import JobFolder, JobFolderError, write_atomically
from ..read import spec_of
from ..spec import TrainingJobSpec
from ..status import FINAL, ClusterWord
from ..target import SubmissionUnknownError
from . import commands
from .fit import chosen, refuse_misfit, settings_notes, unavailable
from .nodes import cluster_info, nodes, partitions, seconds_of
from .options import SlurmOptions, indices_of, options_of
from .requeue import requeue_other
from .script import COMMENT, script_of
from .states import state_of
from .words import time_of, words

_SCRIPT = "script.sh"
_LOOK_EVERY_S = 0.1
_END_S = 60.0
"""Beyond KillWait, for slurmctld to notice that a job has ended."""


class SlurmTarget:
    """The cluster that this machine's commands of Slurm talk to."""

    name = "slurm"

    def check(self, spec: TrainingJobSpec, plan: Mapping[str, Any]) -> Sequence[str]:
        """See :class:`.Target`."""
        options = options_of(spec)
        script = _script(spec, Path("/job"), plan, python="python", inherit_env=True)
        where = chosen(options, partitions(nodes()))
        refuse_misfit(spec, where)
        notes = settings_notes(spec, commands.config(), where, plan["checkpoint_every_s"])
        try:
            commands.run("sbatch", "--test-only", stdin=script, environment=_environment(options))
        except commands.SlurmError as error:
            waits = unavailable(spec, where)
            # Slurm has the same words for nodes that do not exist and for nodes that are down.
            if waits is None or "node configuration is not available" not in error.why:
                raise ValueError(f"Slurm would refuse the job: {error.why}{_way_out(error.why)}") from None
            notes.insert(0, waits)
        return notes

    def render(self, spec: TrainingJobSpec, folder: Path, job: Mapping[str, Any]) -> str:
        """See :class:`.Target`."""
        base = _base(spec, folder)
        inherit_env = job.get("inherit_env", True)
        script = _script(spec, base, job["plan"], python=job["python"], inherit_env=inherit_env)
        first, _, rest = script.partition("\n")
        command = shlex.join(["sbatch", "--parsable", str(folder / _SCRIPT)])
        comments = [
            f"submitted by: {command}",
            f"{folder}/job.json:",
            *json.dumps(job, indent=2).splitlines(),
        ]
        return "\n".join([first, *(f"# {line}" for text in comments for line in text.splitlines()), rest])

    def indices(self, spec: TrainingJobSpec) -> Sequence[int] | None:
        """See :class:`.Target`."""
        array = options_of(spec).array
        return None if array is None else indices_of(array)

    def submit(
        self, spec: TrainingJobSpec, folders: Sequence[JobFolder], *, inherit_env: bool
    ) -> Sequence[str]:
        """See :class:`.Target`.

        Raises:
            SubmissionUnknownError: sbatch did not say.
            KernelPytorchError: sbatch refused; in its own words.
        """
        job = folders[0].job()
        base = _base(spec, folders[0].path)
        script = _script(spec, base, job["plan"], python=job["python"], inherit_env=inherit_env)
        for folder in folders:
            write_atomically(folder.path / _SCRIPT, script.encode("utf-8", "surrogateescape"), 0o700)
        try:
            native_id = _sbatch(folders[0], options_of(spec))
        except (commands.NoAnswerError, KeyboardInterrupt) as error:
            why = error.why if isinstance(error, commands.NoAnswerError) else "sbatch was interrupted"
            raise SubmissionUnknownError(folders[0].id, why, "squeue") from error
        indices = self.indices(spec)
        return [native_id] if indices is None else [f"{native_id}_{index}" for index in indices]

    def words(
        self, folders: Sequence[JobFolder], patience_s: float = commands.PATIENCE_S
    ) -> Mapping[str, ClusterWord]:
        """See :class:`.Target`."""
        ids = {folder.id: id for folder in folders if (id := _native_id(folder)) is not None}
        ids |= _found_again([folder for folder in folders if folder.id not in ids], patience_s)
        found = words(list(ids.values()), patience_s)
        return {job: found[id] for job, id in ids.items()}

    def cancel(self, folder: JobFolder) -> None:
        """See :class:`.Target`."""
        if (native_id := _native_id(folder)) is None:
            return
        kill_wait_s = seconds_of(commands.config().get("KillWait", "")) or 30.0
        until = time.monotonic() + kill_wait_s + _END_S
        try:
            commands.run("scancel", native_id)
        except commands.SlurmError as error:
            if not commands.is_gone(error):
                raise
        while True:
            row = commands.queue([native_id], "TN").get(native_id)
            if row is None and commands.show_job(native_id) is None:
                return
            if row is not None and state_of(row[0]) in FINAL:
                return
            if row is not None and time.monotonic() > until:
                raise KernelPytorchError(
                    f"{folder.id}: job {native_id} is still {row[0]} on {row[1] or 'no node'}",
                    "a node may be down: ask the administrators",
                )
            time.sleep(_LOOK_EVERY_S)

    def requeue(self, folder: JobFolder, exclude: Sequence[str] = ()) -> str:
        """See :class:`.Target`. One that Slurm does not know any more is submitted again."""
        native_id = _native_id(folder)
        word = self.words([folder]).get(folder.id)
        running = word is not None and word.state is JobState.RUNNING and folder.attempt_numbers()
        folder.event("requeue", "requeued on request", exclude=list(exclude), because="asked")
        if native_id is not None and running and not exclude:
            folder.request_stop("kernel-pytorch requeue")  # ranks get more time to save than by scontrol
            return native_id
        if native_id is not None and requeue_other(native_id, exclude):
            return native_id
        options = options_of(spec_of(folder.job()["spec"]))
        more = []
        if exclude:
            more.append(f"--exclude={','.join([*([options.exclude] if options.exclude else []), *exclude])}")
        if options.array is None:
            return _sbatch(folder, options, *more)
        return f"{_sbatch(folder, options, *more, f'--array={_index(folder)}')}_{_index(folder)}"

    def estimated_start(self, folder: JobFolder) -> float | None:
        """See :class:`.Target`."""
        native_id = _native_id(folder)
        row = commands.queue([native_id], "S").get(native_id) if native_id else None
        return None if row is None else time_of(row[0])

    def cluster_info(self) -> dict[str, Any]:
        """See :func:`.nodes.cluster_info`."""
        return cluster_info()


def _script(
    spec: TrainingJobSpec, base: Path, plan: Mapping[str, Any], *, python: str, inherit_env: bool
) -> str:
    return script_of(spec, base, python=python, lead_s=plan["lead_s"], inherit_env=inherit_env)


def _sbatch(folder: JobFolder, options: SlurmOptions, *more: str) -> str:
    """Submit the script in a folder; returns Slurm's id."""
    script = folder.path / _SCRIPT
    answer = commands.run("sbatch", "--parsable", *more, str(script), environment=_environment(options))
    # A cluster's name may follow, and warnings of a site's plugin go before.
    found = re.findall(r"^(\d+)(?:;.*)?$", answer, re.MULTILINE)
    if not found:
        raise commands.NoAnswerError(f"sbatch gave no id, but {answer.strip()!r}")
    return str(found[-1])


def _environment(options: SlurmOptions) -> dict[str, str]:
    return commands.of_submission(options.common())


def _base(spec: TrainingJobSpec, folder: Path) -> Path:
    """The folder, or, of an array, that without the first index."""
    array = options_of(spec).array
    if array is None:
        return folder
    return folder.with_name(folder.name.removesuffix(f"-{indices_of(array)[0]}"))


def _index(folder: JobFolder) -> str:
    return folder.id.rpartition("-")[2]


def _native_id(folder: JobFolder) -> str | None:
    return (folder.native() or {}).get("native_id")


def _found_again(folders: Sequence[JobFolder], patience_s: float) -> dict[str, str]:
    """Slurm's ids of jobs of which sbatch did not say whether they were submitted, now noted; by our id."""
    if not folders:
        return {}
    queued, found = commands.of_comments(COMMENT, patience_s), {}
    for folder in folders:
        attempts = folder.attempts()
        native_id = queued.get(folder.id) or (attempts[-1]["native"] if attempts else None)
        if native_id is not None:
            found[folder.id] = native_id
            with suppress(JobFolderError):  # then it is looked for again the next time
                folder.write_native(SlurmTarget.name, native_id)
    return found


def _way_out(why: str) -> str:
    """What to do about a refusal, where that is known."""
    if "account" in why.lower():
        found = []
        try:
            user = os.environ.get("USER", "")
            ask = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}"]
            found = sorted(set(commands.run(*ask, "format=account").split()))
        except KernelPytorchError:
            pass
        return f": your accounts are {', '.join(found)}" if found else ": ask for those you may use"
    if "node configuration" in why:
        return (
            ": ask for fewer cores, less memory or fewer GPUs per node; scontrol show node says what there is"
        )
    return ""
