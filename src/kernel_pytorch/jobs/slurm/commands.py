"""Slurm's commands: arguments in, text out. No shell, no JSON, whose form changes with each version."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from ...errors import KernelPytorchError
from ..target import ClusterUnavailableError

SEPARATOR = "\x1f"
"""Between the fields that a command is asked for: no name or reason has it."""
PATIENCE_S = 30.0
"""How long a command may take, in seconds, where the caller does not say."""
_OF_SLURM = re.compile("(SLURM|SBATCH|SALLOC|SRUN|SQUEUE|SINFO|SACCT|SCANCEL|SCONTROL)_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
_DEFAULTS = ("ACCOUNT", "CONSTRAINT", "PARTITION", "QOS", "RESERVATION")
_PREFIX = re.compile(r"(?:(?:sbatch|squeue|sacct|scontrol|sinfo|scancel): )?(?:(?:error|fatal): )?")
_PING = "see whether slurmctld runs: scontrol ping"
_UNREACHABLE = re.compile(
    "Unable to contact slurm controller|Could not establish a configuration source|Unable to process config"
    "|Zero Bytes were transmitted|Socket timed out|Unexpected message received|Transport endpoint"
    "|Connection refused|Protocol authentication error"
    "|slurmctld.* (?:standby|backup)|[Cc]annot stat file",
)
_GONE = re.compile("Invalid job id|Job/step already completing or completed|Invalid job array")


_UNANSWERED = re.compile(
    "Zero Bytes were transmitted|Socket timed out|Unexpected message received|Transport endpoint"
)
"""After these slurmctld may have done what it was asked to."""


class SlurmError(KernelPytorchError):
    """Slurm refused a request; in its own words."""


class NoAnswerError(ClusterUnavailableError):
    """slurmctld may have received a request, and has not answered it."""


def run(
    *argv: str,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> str:
    """What a command of Slurm prints.

    Args:
        argv: the command.
        stdin: its input, if any.
        environment: of the command. Default: ``of_queries()``.
        timeout_s: how long it may take, in seconds.

    Raises:
        ClusterUnavailableError: it is not installed, or no slurmctld answers.
        NoAnswerError: so, and the request may have been carried out.
        SlurmError: Slurm refused.
    """
    environment = of_queries() if environment is None else environment
    try:
        code, output, errors = _run(
            argv, (stdin or "").encode("utf-8", "surrogateescape"), environment, timeout_s
        )
    except FileNotFoundError as error:
        fix = "submit on a login node of the cluster, or have Slurm's bin folder in PATH; or use --to local"
        raise ClusterUnavailableError(f"Slurm's {argv[0]} is not installed here", fix) from error
    except subprocess.TimeoutExpired as error:
        why = f"{argv[0]} had no answer in {timeout_s:g} s"
        raise NoAnswerError(why, _PING) from error
    except OSError as error:  # also: arguments too long
        raise SlurmError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if code == 0:
        return output.decode("utf-8", "surrogateescape")
    said = _said((errors or output).decode("utf-8", "replace"))
    if _UNREACHABLE.search(said):
        kind = NoAnswerError if _UNANSWERED.search(said) else ClusterUnavailableError
        raise kind(f"{argv[0]}: {said}", _PING)
    raise SlurmError(f"{argv[0]}: {said}" if said else f"{argv[0]} ended with {code}")


def _run(
    argv: Sequence[str], stdin: bytes, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, bytes, bytes]:
    """Exit status, output and errors of a command that leaves nothing, also if it is a site's script."""
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output, errors


def of_queries() -> dict[str, str]:
    """The environment for questions: nothing of the user's changes the form of the answers."""
    kept = {name: value for name, value in os.environ.items() if not _OF_SLURM.match(name) or name in _KEPT}
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


def of_submission(given: Iterable[str]) -> dict[str, str]:
    """The environment for sbatch, which a job inherits.

    Variables of sbatch count more than a script's header, and those of a job in which ``submit`` is typed
    would be taken for the new job's.

    Args:
        given: names of options in the header, such as ``partition``; the user's variables set only others.
    """
    names = set(_DEFAULTS) - {name.upper() for name in given}
    kept = {*_KEPT, *(f"SBATCH_{name}" for name in names)}
    return {name: value for name, value in os.environ.items() if not _OF_SLURM.match(name) or name in kept}


def queue(jobs: Sequence[str], fields: str, timeout_s: float = PATIENCE_S) -> dict[str, list[str]]:
    """What squeue knows of jobs, also of those that ended less than MinJobAge ago.

    Args:
        jobs: their ids, as ``17`` or ``17_3``.
        fields: the letters of its ``--format``.
        timeout_s: how long it may take, in seconds.

    Returns:
        The fields of each job that it knows, by id.
    """
    if not jobs:
        return {}
    form = SEPARATOR.join(f"%{field}" for field in "i" + fields)
    ask = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}"]
    try:
        lines = run(*ask, f"--format={form}", timeout_s=timeout_s).splitlines()
    except SlurmError as error:
        if _GONE.search(error.why):
            return {}
        raise
    rows = (line.split(SEPARATOR) for line in lines)
    return {row[0]: row[1:] for row in rows if len(row) == 1 + len(fields)}


def of_comments(beginning: str, timeout_s: float = PATIENCE_S) -> dict[str, str]:
    """The ids of this user's jobs by what follows ``beginning`` in their comments.

    A job of an array has ``-`` and its index after that.
    """
    ask = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
    found = {}
    for line in run(*ask, f"--format=%i{SEPARATOR}%k", timeout_s=timeout_s).splitlines():
        id, _, comment = line.partition(SEPARATOR)
        if comment.startswith(beginning):
            _, in_array, index = id.partition("_")
            found[comment[len(beginning) :] + (f"-{index}" if in_array else "")] = id
    return found


def accounted(job: str, fields: Sequence[str], timeout_s: float = PATIENCE_S) -> list[str] | None:
    """What sacct has of a job; None: nothing, or the site keeps no accounts."""
    ask = ["sacct", "--noheader", "--parsable2", "--allocations", f"--delimiter={SEPARATOR}", f"--jobs={job}"]
    try:
        lines = run(*ask, f"--format={','.join(fields)}", timeout_s=timeout_s).splitlines()
    except (SlurmError, ClusterUnavailableError):
        return None
    rows = [row for line in lines if len(row := line.split(SEPARATOR)) == len(fields)]
    return rows[-1] if rows else None


def show_job(job: str, timeout_s: float = PATIENCE_S) -> dict[str, str] | None:
    """scontrol's facts about a job, but for its name; None if slurmctld does not know it."""
    try:
        text = run("scontrol", "show", "job", "-o", job, timeout_s=timeout_s)
    except SlurmError as error:
        if _GONE.search(error.why):
            return None
        raise
    # A name may have anything in it, also what looks like facts.
    return facts(text.partition(" UserId=")[2])


def records(*what: str) -> list[dict[str, str]]:
    """scontrol's facts about each of several things, such as ``"node"``."""
    return [facts(line) for line in run("scontrol", "show", *what, "-o").splitlines() if "=" in line]


def config() -> dict[str, str]:
    """The cluster's configuration."""
    pairs = (line.partition("=") for line in run("scontrol", "show", "config").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def facts(line: str) -> dict[str, str]:
    """The ``Name=value`` pairs of a line. Values may have blanks; of equal names the first counts."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|(?<=\s))([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", line):
        found.setdefault(name, value)
    return found


def hostnames(nodes: str) -> list[str]:
    """The names in a list of Slurm's, such as ``n[1-3]``."""
    if not re.search(r"[\[,]", nodes):
        return [nodes] if nodes and nodes not in ("(null)", "None assigned", "N/A") else []
    return run("scontrol", "show", "hostnames", nodes).split()


def is_gone(error: SlurmError) -> bool:
    """Whether Slurm refused because it does not know the job, or because the job has ended."""
    return _GONE.search(error.why) is not None


def _said(text: str) -> str:
    """An error's lines as one, without the names of commands."""
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(_PREFIX.sub("", line, count=1) for line in lines if line))
