"""``python -m kernel_pytorch.advice.worker REQUEST PIPE``: the process in which the user's code runs.

Torch is imported in :func:`work`, after the environment is set.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .facts import Trial
from .inputs import parse_input
from .messages import (
    Compared,
    Confirmed,
    Failed,
    Finished,
    Found,
    Loaded,
    Observed,
    Offered,
    Pipe,
    Planned,
    Refused,
    Request,
    Tried,
    Trying,
    decode_request,
)
from .run_record import reserve
from .target import Named, TargetError, where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .facts import ModelFacts
    from .prove.session import Session
    from .strategy.protocol import Strategy

_SHARE = 0.7
"""Of the time that is left: a trial may take it while other strategies wait."""
_LEAST_ANALYSIS_S = 3.0


def main(arguments: list[str]) -> None:
    """Do what a request asks for, report it, and end this process."""
    from ..jobs.rank.parent import die_with_parent

    if sys.platform == "linux" and not die_with_parent():
        return
    with suppress(OSError):  # where memory is short, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(FileNotFoundError):
        sys.path.append(os.getcwd())  # last, it hides no module
    path, descriptor = arguments
    os.set_inheritable(int(descriptor), False)
    pipe = Pipe(int(descriptor))
    request = decode_request(Path(path).read_bytes())
    target = Named.of(request.target)
    try:
        work(request, target, pipe)
        pipe.send(Finished())
    except TargetError as error:
        pipe.send(Refused(why=str(error)))
    except BaseException as error:  # sys.exit in forward too
        pipe.send(Failed(why=where(error, target.file)))
    os._exit(0)  # threads and exit handlers of the model's are not waited for


def work(request: Request, target: Named, pipe: Pipe) -> None:
    """Load, then analyse, try or confirm."""
    from .load import load_task

    task, remarks = load_task(
        target,
        [parse_input(text) for text in request.inputs],
        request.options,
        loss=None if request.loss is None else Named.of(request.loss),
        optimizer=None if request.optimizer is None else Named.of(request.optimizer),
    )
    warnings.simplefilter("ignore")  # of the compiler and of changed copies; those of the file are shown
    from .prove.run import machine_of, with_remarks
    from .prove.session import Session
    from .static import static_facts
    from .strategy.registry import broken, strategies

    known = strategies()
    remarks = (*remarks, *broken)
    facts = with_remarks(static_facts(task), remarks)
    pipe.send(Loaded(facts=facts, machine=machine_of(facts)))
    reserve_s = reserve(time.monotonic() - request.started)
    try:
        session = Session(task, request.facts, done=request.done)
        facts = session.facts(max(_LEAST_ANALYSIS_S, request.analysis_until - time.monotonic()))
    except BaseException as error:  # sys.exit too
        ours = "the analysis failed: " * isinstance(error, Exception)  # those of the model are caught there
        facts = static_facts(task, f"{ours}{where(error, target.file)}")
    if request.facts is None:
        facts = with_remarks(facts, remarks)
        pipe.send(Found(facts=facts))
    if facts.failed:
        return
    if request.confirm:
        _confirm(request, session, known, pipe)
        return
    if request.observe:
        _observe(session, facts, pipe)
    _search(request, session, known, facts, reserve_s, pipe)


def _confirm(request: Request, session: Session, known: Sequence[Strategy], pipe: Pipe) -> None:
    by_name = {strategy.name: strategy for strategy in known}
    trial = session.confirm([by_name[name] for name in request.confirm], request.until)
    pipe.send(Compared(reference=session.reference))
    pipe.send(Confirmed(trial=trial))


def _observe(session: Session, facts: ModelFacts, pipe: Pipe) -> None:
    from .prove.run import FINDINGS_S, look

    found, unobserved = look(session.task, facts, FINDINGS_S)
    pipe.send(Observed(findings=found, remarks=unobserved))


def _search(
    request: Request,
    session: Session,
    known: Sequence[Strategy],
    facts: ModelFacts,
    reserve_s: float,
    pipe: Pipe,
) -> None:
    from .prove.run import offers_of
    from .prove.search import hope_of, installed, not_tried, refusal, search

    now = time.monotonic()
    trials_until = request.trials_until or min(now + request.options.budget_s, request.until)
    planned, waiting = [], set()
    for strategy in known:
        if not getattr(strategy, "offers", False):
            why = refusal(strategy, facts, request.options, installed) or hope_of(strategy, facts)
            if isinstance(why, str):
                planned.append(not_tried(strategy, why))
            else:
                planned.append(not_tried(strategy, "", why))
                waiting.add(strategy.name)
    waiting -= {trial.strategy for trial in request.done}
    pipe.send(Planned(trials=tuple(planned), until=trials_until))

    def trial(kept: list[Strategy], strategy: Strategy, end: float) -> Trial:
        waiting.discard(strategy.name)
        now = time.monotonic()
        until = now + (end - now) * (_SHARE if waiting else 1.0)
        pipe.send(Trying(strategy=strategy.name, until=until))
        return session.trial(kept, strategy, until)

    for made in search(
        known,
        facts,
        request.options,
        deadline=min(request.until, trials_until + reserve_s),
        clock=time.monotonic,
        trial=trial,
        done=request.done,
        reserve_s=reserve_s,
    ):
        pipe.send(Tried(trial=made))
    if session.reference:
        pipe.send(Compared(reference=session.reference))
    offers, failed = offers_of(known, session.task, facts)
    pipe.send(Offered(offers=offers, remarks=failed))


if __name__ == "__main__":
    main(sys.argv[1:])
