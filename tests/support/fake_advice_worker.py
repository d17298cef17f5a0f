"""``python fake_advice_worker.py SCENARIO REQUEST PIPE``: a worker of the advisor without a model or torch.

It tries the strategies "one", "two" and "three". A scenario says what goes wrong; everything is reported over
the pipe as a real worker does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from advice_records import MACHINE, trial
from recorded_facts import recorded_facts

from kernel_pytorch.advice.facts import Finding, unknown
from kernel_pytorch.advice.messages import (
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

NAMES = ("one", "two", "three")


def work(scenario: str, request: Request, pipe: Pipe) -> None:
    if scenario == "refused":
        pipe.send(Refused(why="model.py has no 'make'"))
        return
    if scenario == "cannot run":
        pipe.send(Failed(why="ModuleNotFoundError: No module named 'torch.fx'"))
        return
    if scenario == "dead on loading":
        os._exit(7)
    if scenario == "file vanished" and request.facts is not None:
        pipe.send(Refused(why="no such file: model.py"))
        return
    pipe.send(Loaded(facts=recorded_facts(call=unknown("not measured")), machine=MACHINE))
    if scenario == "dead in analysis":
        os._exit(3)
    if request.confirm:
        confirm(scenario, request, pipe)
        return
    if request.facts is None:
        pipe.send(Found(facts=recorded_facts()))
    if request.observe:
        if scenario == "dead in findings":
            os._exit(4)
        pipe.send(Observed(findings=(Finding(kind="graph break", place="model.py:3", cost="", remedy=""),)))
    search(scenario, request, pipe)


def search(scenario: str, request: Request, pipe: Pipe) -> None:
    until = request.trials_until or time.monotonic() + request.options.budget_s
    pipe.send(
        Planned(
            trials=(*(trial(name, "not tried") for name in NAMES), trial("gpu", "not tried", "no GPU")),
            until=until,
        )
    )
    for name in NAMES:
        if name in {done.strategy for done in request.done}:
            continue
        limit = 0.3 if scenario == "hangs in two" and name == "two" else 5.0
        pipe.send(Trying(strategy=name, until=time.monotonic() + limit))
        if name == "two":
            go_wrong(scenario, pipe)
        pipe.send(Tried(trial=trial(name, "reverted", "slower") if name == "three" else trial(name)))
    pipe.send(Tried(trial=trial("gpu", "not tried", "no GPU")))
    pipe.send(Compared(reference="the original in float64"))
    pipe.send(Offered(offers=()))
    pipe.send(Finished())


def go_wrong(scenario: str, pipe: Pipe) -> None:
    if scenario == "segmentation fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif scenario == "hangs in two":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    elif scenario == "waits":
        Path(os.environ["FAKE_WORKER_FILE"]).write_text(str(os.getpid()))
        signal.pause()
    elif scenario == "child stays":
        stays = "import sys, signal; print('child of the model'); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", stays], start_new_session=True, pass_fds=[PIPE])
        Path(os.environ["FAKE_WORKER_FILE"]).write_text(str(child.pid))
        os._exit(5)
    elif scenario == "garbage":
        os.write(PIPE, b'{"type": "Tried"}\n')
        signal.pause()
    elif scenario == "closes its pipe":
        os.closerange(3, 256)
        signal.pause()
    elif scenario == "fails":
        pipe.send(Failed(why="ValueError: wrong"))
        os._exit(0)
    elif scenario == "prints":
        print("printed by the model")


def confirm(scenario: str, request: Request, pipe: Pipe) -> None:
    name = " + ".join(request.confirm)
    if scenario == "dead in confirmation":
        os.kill(os.getpid(), signal.SIGKILL)
    pipe.send(Confirmed(trial=trial(name)))
    pipe.send(Finished())


if __name__ == "__main__":
    PIPE = int(sys.argv[3])
    work(sys.argv[1], decode_request(Path(sys.argv[2]).read_bytes()), Pipe(PIPE))
