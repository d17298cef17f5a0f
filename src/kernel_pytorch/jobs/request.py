"""What a new job is: its plan, the content of its ``job.json``, and what is refused of it."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .folder import JobFolderError, as_text
from .recovery.plan import Limits
from .recovery.timing import DEFAULT_INTERVAL_S, checkpoint_interval, lead_time
from .spec import TrainingJobSpec


def plan_of(spec: TrainingJobSpec) -> dict[str, Any]:
    """When the job saves, when it is asked to stop, and how often it is restarted; each with the reason."""
    asked_s = spec.checkpoint_interval_minutes * 60
    every = checkpoint_interval(None if asked_s == DEFAULT_INTERVAL_S else asked_s, None, spec.num_nodes[1])
    lead = lead_time(None)
    never = spec.restart_policy == "Never"
    return {
        "checkpoint_every_s": every.value,
        "checkpoint_every_why": every.why,
        "lead_s": lead.value,
        "lead_why": lead.why,
        "restarts": 0 if never else spec.max_retries,
        "restarts_why": "restart policy Never" if never else "max_retries, in each attempt",
        "requeues": 0 if never else Limits.max_requeues,
    }


def job_of(spec: TrainingJobSpec, target: str, plan: Mapping[str, Any], cwd: str) -> dict[str, Any]:
    """The content of ``job.json``, but for the id."""
    # What was typed travels as argv and environment; a second copy of it would need the same care.
    facts = replace(spec, command=["-"], env_vars={}, secrets={}).to_dict()
    return {
        "name": spec.name,
        "spec": facts,
        "argv": [as_text(word) for word in spec.command],
        "environment": {as_text(name): as_text(value) for name, value in spec.env_vars.items()},
        "secrets": {as_text(name): as_text(value) for name, value in spec.secrets.items()},
        "cwd": as_text(cwd),
        "python": sys.executable,
        "token": secrets.token_hex(16),
        "target": target,
        "submitted_at": time.time(),
        "plan": dict(plan),
    }


def without_values(job: Mapping[str, Any]) -> dict[str, Any]:
    """``job.json`` to be shown: without the token, and with the names of variables only."""
    shown = {name: value for name, value in job.items() if name != "token"}
    return {**shown, "environment": dict.fromkeys(job["environment"], "(not shown)")}


def absolute(cwd: str | Path | None) -> str:
    """Where a command runs; None: here."""
    if cwd is not None:
        return os.path.abspath(os.fspath(cwd))
    try:
        return os.getcwd()
    except OSError as error:
        raise JobFolderError("the working directory has vanished", "change to another one") from error


def refuse_secrets(sources: Mapping[str, str], inherit_env: bool) -> None:
    """Refuse those that no rank could read; the files may be on the nodes only."""
    for name, source in sources.items():
        kind, _, place = source.partition(":")
        if kind == "env" and not inherit_env:
            raise ValueError(
                f"secret {name} is in the environment, which the ranks do not get: use file:PATH"
            )
        if kind == "env" and place not in os.environ:
            raise ValueError(f"secret {name}: the environment has no {place}: export it first")
