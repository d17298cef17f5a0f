"""Files of users with models that do what models should not. Each is loaded as ``FILE:make``, its input is
``randn(2, 8)``.

``GONE`` in a source stands for a file to which it may write process ids that must be gone after the run.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_HEAD = """\
import ctypes, os, signal, subprocess, sys, threading, time
import torch
from torch import nn

"""
_NET = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
"""


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file."""

    name: str
    forward: str = "return self.linear(x)"
    """Body of the model's ``forward``."""
    after: str = ""
    """What follows the class."""
    make: str = "def make(): return Net()"
    status: int
    says: str = ""
    """In the last line of standard error, of a status other than 0."""
    slow: bool = False
    """Whether it must be waited for until the time is over."""

    @property
    def source(self) -> str:
        """The file's text."""
        body = textwrap.indent(textwrap.dedent(self.forward).strip(), " " * 8)
        return f"{_HEAD}{_NET}{body}\n\n{textwrap.dedent(self.after)}\n{self.make}\n"


HOSTILE = (
    Hostile(name="os._exit on import", after="os._exit(3)", status=2, says="ended with status 3"),
    Hostile(name="sys.exit on import", after="sys.exit(0)", status=2, says="SystemExit: 0"),
    Hostile(name="endless import", after="while True: pass", status=2, says="not loaded after", slow=True),
    Hostile(name="os._exit in forward", forward="os._exit(7)", status=1, says="ended with status 7"),
    Hostile(name="sys.exit in forward", forward="sys.exit(0)", status=1, says="SystemExit: 0"),
    Hostile(name="segmentation fault", forward="ctypes.string_at(0)", status=1, says="killed by signal 11"),
    Hostile(name="kills itself", forward="os.kill(os.getpid(), signal.SIGKILL)", status=1, says="signal 9"),
    Hostile(
        name="endless loop in forward",
        forward="while True: pass",
        status=1,
        says="did not end in time",
        slow=True,
    ),
    Hostile(
        name="sleeps in forward", forward="time.sleep(3600)", status=1, says="did not end in time", slow=True
    ),
    Hostile(
        name="allocates more and more",
        forward="""
            kept = []
            while True:
                kept.append(torch.ones(10 << 30, dtype=torch.uint8))
        """,
        status=1,
        says="the model could not be run",
        slow=True,
    ),
    Hostile(
        name="prints",
        forward="""
            print("printed in forward", flush=True)
            os.write(1, b"written in forward\\n")
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="changes the default dtype and the number of threads",
        forward="""
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(1)
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="leaves a child",
        forward="""
            if not hasattr(Net, "child"):
                Net.child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
                with open(GONE, "a") as file:
                    print(Net.child.pid, file=file)
                if os.fork() == 0:
                    time.sleep(3600)
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="closes its streams",
        forward="""
            sys.stdout.close()
            for descriptor in (0, 1, 2):
                try:
                    os.close(descriptor)
                except OSError:
                    pass
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="closes all files",
        forward="os.closerange(3, 1000)",
        status=1,
        says="closed its pipe",
    ),
    Hostile(
        name="ignores signals and sends itself some",
        forward="""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.01)
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="leaves threads",
        forward="""
            if not hasattr(Net, "thread"):
                Net.thread = threading.Thread(target=threading.Event().wait)
                Net.thread.start()
            return self.linear(x)
        """,
        status=0,
    ),
    Hostile(
        name="changes torch",
        after="""
            torch.randn = torch.rand = lambda *size, **options: torch.zeros(*size)
            torch.Tensor.__repr__ = None
            nn.functional.gelu = None
        """,
        status=0,
    ),
    Hostile(name="endless recursion", forward="return self(x)", status=1, says="RecursionError"),
    Hostile(
        name="cannot be copied",
        after="""
            def refuse(self, memo): raise RuntimeError("no copies")
            Net.__deepcopy__ = refuse
        """,
        status=0,
    ),
    Hostile(name="deletes its file", after="os.unlink(__file__)", status=0),
    Hostile(
        name="raises KeyboardInterrupt", forward="raise KeyboardInterrupt", status=1, says="KeyboardInterrupt"
    ),
)
