"""``kernel-pytorch submit``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import CommandError
from ..shell import print_json
from .common import add_common, jobs_of, mistakes
from .logs import print_lines
from .options import add_spec_options, check_target, options_of
from .output import state_of, submitted_lines

if TYPE_CHECKING:
    from ...jobs.manage import Jobs, Submitted
    from ...jobs.spec import TrainingJobSpec

_EXAMPLES = """\
examples:
  kernel-pytorch submit --nodes 2 --ranks-per-node 1 --time 4h -- longnet train --data books
  kernel-pytorch submit --to slurm --nodes 2:4 --gpus-per-node 8 --time 4h -- longnet train --data books
  kernel-pytorch submit job.yaml --to slurm --time 8h    the same as a file; options here win
  kernel-pytorch submit --to slurm --dry-run -- longnet train --data books > job.sh

Nothing in the command says "resume": when the job runs again, it goes on where it stopped.

Exit status: 0 submitted, with --follow the job has completed; 1 not accepted, or the cluster did not say
whether it was, with --follow the job has failed or its end is not known; 2 a mistake in what was given; 130
with --follow: the job was cancelled, or Ctrl-C was pressed, after which the job goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``submit``."""
    what = "Run a command as a job that saves before it is stopped and goes on after faults: docs/jobs.md."
    add_common(parser, what, _EXAMPLES, "what was submitted as JSON, one object for each job")
    parser.usage = "%(prog)s [JOB.yaml] [options] [-- COMMAND ...]"
    parser.add_argument(
        "file",
        metavar="JOB.yaml",
        nargs="*",
        help="the job as a file, .yaml or .json; it may also have 'to' and 'inherit_env'",
    )
    parser.add_argument(
        "--to", choices=("local", "slurm"), help="where (default: 'to' of the file, else local)"
    )
    add_spec_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted; touch nothing")
    parser.add_argument(
        "--follow", action="store_true", help="print the logs until the job ends, and exit as it did"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``submit`` and return its exit status."""
    from ...jobs.target import target_named

    with mistakes():
        spec, to, inherit_env = _request(args)
    with jobs_of(args) as jobs:
        submitted = jobs.submit(spec, target_named(to), dry_run=args.dry_run, inherit_env=inherit_env)
    if args.json:
        for job in submitted:
            print_json(_as_json(job, to))
    elif args.dry_run:
        print(submitted[0].rendered, end="")
    else:
        print("\n".join(submitted_lines(submitted, to)), flush=True)
    if args.follow and not args.dry_run:
        return _follow(jobs, submitted[0].job_id, as_json=args.json)
    return 0


def _request(args: argparse.Namespace) -> tuple[TrainingJobSpec, str, bool]:
    """The job, its target, and whether it gets this environment."""
    from ...jobs.read import OF_SUBMISSION, override, read_file, spec_of

    if len(args.file) > 1 or (args.file and not args.file[0].endswith((".yaml", ".yml", ".json"))):
        what = " ".join(args.file)
        raise CommandError(f"{what!r} is no file of a job (.yaml, .json): a command comes after --")
    in_file = read_file(args.file[0]) if args.file else {}
    how = {name: in_file.pop(name) for name in OF_SUBMISSION if name in in_file}
    to = args.to or how.get("to")
    if to is None and in_file.get("options", {}).get("slurm"):
        raise CommandError(
            f"{args.file[0]} has options.slurm and does not say where the job runs: give --to slurm or "
            "--to local, or write 'to: slurm' there"
        )
    check_target(args, to := to or "local")
    inherit_env = how.get("inherit_env", True) if args.inherit_env is None else args.inherit_env
    values = override(in_file, options_of(args))
    if not values.get("command"):
        raise CommandError("the command is missing: give it after --, or as 'command' in a file")
    if values.get("name") is None:
        from ...jobs.naming import name_of

        values["name"] = name_of(values["command"])
    if args.follow and values.get("options", {}).get("slurm", {}).get("array") and to == "slurm":
        raise CommandError("--follow follows one job, and --array makes several: use logs --follow for one")
    return spec_of(values), to, inherit_env


def _as_json(job: Submitted, to: str) -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "native_id": job.native_id,
        "target": to,
        "folder": str(job.folder),
        "plan": dict(job.plan),
        "notes": list(job.notes),
        "estimated_start_time": job.estimated_start_time,
        "rendered": job.rendered,
    }


def _follow(jobs: Jobs, job_id: str, *, as_json: bool) -> int:
    """Print the logs until the job ends; the exit status."""
    from ...jobs.manage import exit_status

    try:
        print_lines(jobs.logs(job_id, follow=True), as_json=as_json)
        status = jobs.wait(job_id)
    except KeyboardInterrupt:
        print(f"{job_id} goes on: kernel-pytorch cancel {job_id} ends it", file=sys.stderr)
        raise
    if as_json:
        print_json(status)
    else:
        reason = "" if status.reason is None else f", {status.reason}"
        print(f"{job_id}: {state_of(status)}{reason}", file=sys.stderr)
    return exit_status(status)
