"""Start the processes of a test cluster and end them with the test process, however that ends.

``python keeper.py host|network`` creates a folder, with ``network`` also a bridge, and prints them as JSON.
Each line of its input, ``{"argv": ..., "env": ..., "log": ...}``, then starts a process. The answer is the
pid of its parent, which lives as long as the process or any of its descendants does.
At the end of its input, which also comes when the test process is killed, it kills all its descendants and
removes the folder and the bridge.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    adopt_orphans()
    end_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in end_signals:
        signal.signal(number, lambda *_: sys.exit())
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has at most 107 bytes
    bridge = None
    try:
        folder.chmod(0o755)  # munged insists
        bridge, subnet = add_bridge() if sys.argv[1] == "network" else (None, None)
        print(json.dumps({"folder": str(folder), "bridge": bridge, "subnet": subnet}), flush=True)
        for line in sys.stdin:
            print(start(**json.loads(line)), flush=True)
    finally:
        for number in end_signals:
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        if bridge is not None:
            remove_bridge(bridge)
        shutil.rmtree(folder)


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, such as slurmstepd, in place of init."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("prctl(PR_SET_CHILD_SUBREAPER) failed")


def start(argv: list[str], env: dict[str, str], log: str) -> int:
    parent = os.fork()
    if parent:
        return parent
    try:
        os.setsid()
        adopt_orphans()
        with open(log, "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
        while True:
            os.wait()
    except ChildProcessError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill_descendants() -> None:
    # Only children are killed: until they are waited for, no other process gets their pids. Killing one makes
    # children of its own children.
    while True:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def add_bridge() -> tuple[str, str]:
    """Create a bridge that no other cluster has; return its name and the first three bytes of its subnet."""
    for number in random.sample(range(512), 512):  # 198.18.0.0/15 is reserved for tests of networks
        name, subnet = f"slurm{number}", f"198.{18 + number // 256}.{number % 256}"
        made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True)
        if made.returncode == 0:
            subprocess.run(["ip", "address", "add", f"{subnet}.254/24", "dev", name], check=True)
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            return name, subnet
        if "File exists" not in made.stderr:
            sys.exit(made.stderr)
    sys.exit("no free bridge name")


def remove_bridge(name: str) -> None:
    # The kernel removes the links of a namespace some time after its last process.
    for link in [*(path.name for path in Path(f"/sys/class/net/{name}/brif").iterdir()), name]:
        subprocess.run(["ip", "link", "delete", link], capture_output=True)


if __name__ == "__main__":
    main()
