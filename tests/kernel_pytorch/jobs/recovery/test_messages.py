from __future__ import annotations

import argparse
import errno
import mmap
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_pytorch.jobs.recovery.classify import classify
from kernel_pytorch.jobs.recovery.evidence import Evidence
from kernel_pytorch.jobs.recovery.messages import KINDS, MESSAGES, SLURM_REASONS, TYPES, meaning_of
from kernel_pytorch.watch.health import HealthState
from kernel_pytorch.watch.health.xids import xid_state

GPU = "0000:3b:00"
REAL = {
    "cancelled": """
        slurmstepd: error: *** JOB 812 ON n1 CANCELLED AT 2026-01-05T10:00:00 ***
    """,
    "no_space": """
        OSError: [Errno 28] No space left on device: '/ckpt/7.pt'
        [rank2]: OSError: [Errno 28] No space left on device
        filesystem error: cannot copy file: No space left on device [/a] [/b]
        cp: error writing '/ckpt/7.pt': No space left on device
        n1:12:34 [0] NCCL WARN Error while creating shared memory, error: No space left on device (28)
        OSError: [Errno 122] Disk quota exceeded
        tee: out.log: Disk quota exceeded
        Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm)
        RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that
    """,
    "oom": """
        torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has
        [rank3]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB
        RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 79.15 GiB total capacity)
        torch.OutOfMemoryError: HIP out of memory. Tried to allocate 64.00 GiB
        torch.OutOfMemoryError: XPU out of memory. Tried to allocate 64.00 GiB
        RuntimeError: MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)
        torch.AcceleratorError: CUDA error: out of memory
        RuntimeError: HIP error: out of memory
        Internal: failed call to cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory
        n1:12:34 [0] include/alloc.h:99 NCCL WARN Cuda failure 2 'out of memory'
        n1:12:34 [0] include/alloc.h:99 NCCL WARN Cuda failure 'out of memory'
        RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
        jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory
        RuntimeError: [enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: x
        numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array
        MemoryError
        [rank0]: MemoryError: Unable to allocate
        what():  std::bad_alloc
        OSError: [Errno 12] Cannot allocate memory
        bash: fork: Cannot allocate memory
        kernel: Out of memory: Killed process 4711 (python) total-vm:9kB, anon-rss:8kB
        Out of memory: Kill process 4711 (python) score 900 or sacrifice child
        Memory cgroup out of memory: Killed process 4711 (python) total-vm:9kB
        python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
        oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0
        slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the
        slurmstepd: error: Detected 2 oom-kill event(s) in StepId=12.batch cgroup. Some
        srun: error: n1: task 0: Out Of Memory
        srun: error: n1: tasks 0-3,7: Out Of Memory
        srun: Exceeded job memory limit
        slurmstepd: error: Step 12.0 exceeded memory limit (41 > 20), being killed
        slurmd: Job 12 exceeded virtual memory limit (41>20), cancelling it
        Reason:       OOMKilled
    """,
    "user": """
        ModuleNotFoundError: No module named 'longnets'
        [rank1]: ModuleNotFoundError: No module named 'flash_attn'
        /usr/bin/python3: No module named longnets
        ImportError: cannot import name 'foo' from 'bar' (/x/bar.py)
        SyntaxError: invalid syntax
        IndentationError: unexpected indent
        longnet train: error: unrecognized arguments: --stepz 9
        train.py: error: the following arguments are required: --data
        longnet: error: argument --steps: invalid int value: 'many'
        train.py: error: argument -n/--num: expected one argument
        torchrun: error: ambiguous option: --run could match --run-path, --run_path
        python: can't open file '/home/a/trian.py': [Errno 2] No such file or directory
        bash: line 1: longnett: command not found
        /bin/sh: 1: longnett: not found
        /var/spool/slurmd/job00191/slurm_script: line 28: longnet: command not found
        OSError: [Errno 8] Exec format error: './run.sh'
        bash: ./run: cannot execute binary file: Exec format error
        torch.AcceleratorError: CUDA error: invalid device ordinal
        n1:1:2 [0] init.cc:9 NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on
        RuntimeError: CUDA error: no kernel image is available for execution on the device
        RuntimeError: CUDA driver version is insufficient for CUDA runtime version
        RuntimeError: The NVIDIA driver on your system is too old (found version 11040)
        AssertionError: Torch not compiled with CUDA enabled
        RuntimeError: Distributed package doesn't have NCCL built in
        RuntimeError: Error(s) in loading state_dict for LongNet:
        sbatch: error: Batch job submission failed: Invalid partition name specified
        srun: error: Unable to allocate resources: Requested node configuration is not available
    """,
    "timeout": """
        slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-05T10:00:00 DUE TO TIME LIMIT ***
    """,
    "stopped": """
        slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-05T10:00:00 DUE TO PREEMPTION ***
        slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-05T10:00:00 DUE TO JOB REQUEUE ***
    """,
    "gpu": f"""
        NVRM: Xid (PCI:{GPU}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
        NVRM: Xid (PCI:{GPU}): 48, pid=7, An uncorrectable double bit error (DBE) has been detected
        NVRM: Xid (PCI:{GPU}): 119, pid=7, Timeout after 6s of waiting for RPC response from GPU0 GSP!
        NVRM: GPU {GPU}.0: GPU has fallen off the bus.
        nvidia-nvswitch0: SXid (PCI:{GPU}.0): 12028, Fatal, Link 32 egress non-posted PRIV error
        torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered
        Internal: failed call: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered
        RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution
        CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error
        RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable
        RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable
        RuntimeError: No CUDA GPUs are available
        RuntimeError: CUDA error: system not yet initialized
        RuntimeError: CUDA error: unknown error
        Unable to determine the device handle for GPU0: {GPU}.0: Unknown Error
        Unable to determine the handle of GPU {GPU}.0: GPU is lost.  Reboot the system
        HW Exception by GPU node-1 (Agent handle: 0x55) reason :GPU Hang
        amdgpu {GPU}.0: amdgpu: GPU reset begin!
    """,
    "node_lost": """
        *** STEP 12.0 ON n1 CANCELLED AT 2026-01-05T10:00:00 DUE TO NODE FAILURE, SEE LOG
        srun: error: Node failure on n2
        slurmctld: requeue JobId=12 due to node failure
    """,
    "hang": """
        [rank1]:[E626 06:24:44.903 a.cpp:616] [Rank 1] Watchdog caught collective operation timeout: Work
        [rank7]:[E626 05:14:36.393 a.cpp:1743] [Rank 7] ProcessGroupNCCL's watchdog got stuck for 480 seconds
        [rank0]:[F a.cpp:1] [PG 0 Rank 0] Heartbeat monitor timed out! Process will be terminated after
        RuntimeError: [/gloo/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete
        RuntimeError: Rank 0 timed out in monitoredBarrier after 30000 ms.
        RuntimeError: Rank 1 failed to pass monitoredBarrier in 30000 ms
        torch.distributed.DistStoreError: barrier timeout after 300000ms, key: a
    """,
    "crash": f"""
        torch.AcceleratorError: CUDA error: an illegal memory access was encountered
        [rank0]: RuntimeError: CUDA error: device-side assert triggered
        RuntimeError: CUDA error: misaligned address
        RuntimeError: CUDA error: unspecified launch failure
        NVRM: Xid (PCI:{GPU}): 31, pid=7, name=python, Ch 00000008, intr 00000000. MMU Fault
        Memory access fault by GPU node-2 (Agent handle: 0x56) on address 0x7f. Reason: Page not present
        RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle )`
        Fatal Python error: Segmentation fault
        bash: line 1:   33 Segmentation fault      (core dumped) python train.py
        free(): invalid pointer
        double free or corruption (!prev)
        terminate called after throwing an instance of 'c10::Error'
        RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed.
        RuntimeError: DataLoader worker (pid(s) 77, 78) exited unexpectedly
        RuntimeError: [enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing
        OSError: [Errno 5] Input/output error: '/data/a.bin'
        OSError: [Errno 116] Stale file handle
        OSError: [Errno 24] Too many open files: 'a'
        RuntimeError: can't start new thread
        ValueError: loss is nan at step 812
        [rank5]: my.own.StrangeException: something
    """,
    "network": """
        ncclRemoteError: A call failed possibly due to a network error or a remote process exiting
        torch.distributed.DistBackendError: remote process exited or there was a network error
        ncclSystemError: System call (e.g. socket, malloc) failed
        n1:1:2 [1] NCCL WARN Net : Call to recv from 10.2.8.2<58355> failed : Broken pipe
        n1:1:2 [0] NCCL WARN socketStartConnect: Call to connect to 10.0.0.2<45763> failed : x
        n1:1:2 [1] misc/socket.cc:538 NCCL WARN Net : Connection closed by remote peer n2<47861>
        n1:1:2 [4] NCCL WARN NET/IB : Got completion from peer 10.2.2.6<54862> with status=12 opcode=0
        n1:1:2 [0] NCCL WARN NET/IB : Got async event : port error
        n1:1:2 [0] NCCL WARN NET/IB : mlx5_0:1 Got async event : local catastrophic error
        RuntimeError: [/gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:38531
        [/gloo/pair.cc:553] Read error [10.0.0.2]:38531: Connection reset by peer
        RuntimeError: [/gloo/pair.cc:1] Application timeout caused pair closure
        Gloo connectFullMesh failed with [/gloo/pair.cc:144] no error
        Failed to recv. Connection was likely closed. Did the remote server shutdown or crash?
        [E socket.cpp:860] The client socket has timed out after 60s while trying to connect to (n1, 1234).
        [E socket.cpp:860] The client socket has failed to connect to any network address of (n1, 1234).
        TCP client failed to connect/validate to host n1:1234 - timed out (try=9, timeout=1ms): x
        torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cpu//0/1/rank_1
        RuntimeError: Socket Timeout
        torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The store
        torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError
        ConnectionResetError: [Errno 104] Connection reset by peer
        ConnectionRefusedError: [Errno 111] Connection refused
        OSError: [Errno 113] No route to host
        ssh: connect to host n2 port 22: No route to host
        socket.gaierror: [Errno -3] Temporary failure in name resolution
        OSError: [Errno 98] Address already in use
        The server socket has failed to bind. port: 1234, useIpv6: 0, code: -98, name: EADDRINUSE
    """,
}
LINES = [(line.strip(), kind) for kind, lines in REAL.items() for line in lines.splitlines() if line.strip()]

ALIKE = """
    A shadow loomed over the city and the oomph was gone.
    The team killed it in the exam.
    nodejs is lost without npm; node.js failed to start the party.
    He ran out of memory of the events of that day.
    CUDA out of memory errors are explained in chapter 3.
    Avoid the message "out of memory" by a smaller batch.
    The oom-killer is a part of the kernel that picks a victim.
    oom_kill 0
    oom_score_adj is 0 for this process
    MemoryErrors are rare in Python.
    MemoryError handling was added in version 2.
    Killed: a novel in three parts. Out of memory, killed and forgotten.
    There is no space left on the shelf, and no device either.
    no space left on devices of this kind
    slurmstepd: error: xcgroup_instantiate: unable to create cgroup '/x' : No space left on device
    step 28: [Errno 280] is not an error of this system
    Disk quota exceeded-like symptoms were not seen
    The usage of error bars: argument by argument
    usage: longnet train [-h] --data DATA
    error handling: unrecognized arguments are passed on
    loading module: No module named here is missing, all 12 found
    Watchdogs caught a thief; collective operation timeouts did not help.
    NCCL INFO Call to connect returned at once
    NCCL INFO comm 0x7f rank 1 nranks 8
    NCCL WARN NET/IB : Got async event : GID table change
    Connection closed by remote control, said the player.
    The peers reset the connection by mutual agreement.
    A rendezvous timed out: she waited 60 s for the socket wrench.
    NVRM: Xid (PCI:0000:3b:00): 7913, pid=1, made up
    Xid 79 is listed in NVIDIA's catalog.
    The GPU has fallen off the bus timetable of the museum? No: GPUs have fallen off the bus.
    ECC errors corrected: 3
    GPU reset is planned for Sunday
    JOB 12 finished; the party was CANCELLED AT noon DUE TO TIME LIMITS
    srun: error: Node failures on record: none
    slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-05T10:00:00 ***
    Segmentation fault lines run through the valley.
    the model learned: ValueError means nothing to a poet
    torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
    UserWarning: the default of x will change
    step 1110 loss 2.113 bits per byte 1.98 [Errnoless]
    Network is unreachable-proof, says the vendor
    No route to hosting was found in the contract
    Double free coffee or corruption, the paper asked.
    W socket.cpp:464] The client socket has connected to n1 on 1234.
    I0105 n1: task 0: out of memory of what happened
    preempted by a call, he resumed; CANCELLED meetings are a gift
    Error: what is an error? asked the teacher
    the reason: OOMKilledness is not a word
    accuracy 0.79, 119, 48: numbers of the day
"""
ALIKE_LINES = [line.strip() for line in ALIKE.splitlines() if line.strip()]


@pytest.mark.parametrize(("line", "kind"), LINES, ids=[f"{kind}: {line[:60]}" for line, kind in LINES])
def test_real_messages(line: str, kind: str):
    message = meaning_of(line)
    assert message is not None
    assert message.kind == kind
    failure = classify(Evidence(exit_codes={3: 1}, log_lines={3: ("step 8 loss 2.1", line, "end")}))
    assert (failure.kind, failure.type, failure.rank) == (kind, message.type, 3)
    shown = " ".join(line.split())[:190]
    assert any(shown in fact and fact.startswith("log of rank 3") for fact in failure.evidence)


@pytest.mark.parametrize("line", ALIKE_LINES)
def test_sentences_that_only_look_alike(line: str):
    assert meaning_of(line, starting=True) is None


def test_tables_are_large_and_every_row_is_tried():
    assert len(LINES) >= 60
    assert len(ALIKE_LINES) >= 30
    lines = [line for line, _ in LINES] + STARTING
    untried = [row.pattern.pattern for row in MESSAGES if not any(row.pattern.search(line) for line in lines)]
    assert untried == []


STARTING = [
    "FileNotFoundError: [Errno 2] No such file or directory: 'books.bin'",
    "PermissionError: [Errno 13] Permission denied: '/data/books.bin'",
    "RuntimeError: CUDA error: no CUDA-capable device is detected",
    "RuntimeError: Found no NVIDIA driver on your system. Please check",
    "RuntimeError: No CUDA GPUs are available",
]


@pytest.mark.parametrize("line", STARTING)
def test_what_is_the_users_mistake_only_at_the_start(line: str):
    message = meaning_of(line, starting=True)
    assert message is not None
    assert message.kind == "user"
    later = meaning_of(line)
    assert later is not None
    assert later.kind in ("crash", "gpu")


def test_types_are_those_of_the_job():
    assert set(TYPES) == set(KINDS)
    assert {name for name in TYPES.values() if name} == {
        f"{name}_failure" for name in ("node", "gpu", "network", "software", "oom", "timeout")
    }
    assert {row.kind for row in MESSAGES} <= set(KINDS)


@pytest.mark.parametrize("xid", range(1, 170))
def test_xids_agree_with_those_of_the_health_rules(xid: int):
    message = meaning_of(f"NVRM: Xid (PCI:{GPU}): {xid}, pid=1, name=python")
    faulty = xid_state(xid) is not HealthState.HEALTHY
    assert (message is not None and message.kind == "gpu") == faulty


def raised(function: Callable[[], object]) -> str:
    """The line that names the exception, as a traceback shows it."""
    try:
        function()
    except BaseException as error:
        text = "".join(traceback.format_exception_only(error))
        return next(line for line in text.splitlines() if line.startswith((type(error).__name__, "torch.")))
    raise AssertionError("nothing was raised")


def fill() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        socket.create_connection(unused.getsockname())


def in_use() -> None:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(one.getsockname())


def cpu_memory() -> None:
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def other_model() -> None:
    import torch

    torch.nn.Linear(1, 2).load_state_dict({})


def no_cuda() -> None:
    import torch

    if torch.backends.cuda.is_built():
        pytest.skip("this torch has CUDA")
    torch.zeros(1, device="cuda")


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (fill, "no_space"),
        (refused, "network"),
        (in_use, "network"),
        (lambda: bytearray(1 << 62), "oom"),
        (lambda: __import__("no_such_module_here"), "user"),
        (lambda: compile("if", "x", "exec"), "user"),
        (lambda: os.execv("/nowhere", ["x"]), "user"),
        (lambda: [][1], "crash"),
        (cpu_memory, "oom"),
        (other_model, "user"),
        (no_cuda, "user"),
    ],
)  # fmt: skip
def test_errors_that_are_really_raised(function: Callable[[], object], kind: str):
    message = meaning_of(raised(function), starting=True)
    assert message is not None
    assert message.kind == kind


@pytest.mark.parametrize(
    "argv",
    [
        [sys.executable, "-S", "no_such_file.py"],
        [sys.executable, "-S", "-m", "no_such_module_here"],
        ["sh", "-c", "no_such_program_here"],
        ["bash", "-c", "no_such_program_here"],
    ],
    ids=["python FILE", "python -m", "sh", "bash"],
)
def test_programs_that_really_do_not_exist(argv: list[str]):
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    result = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"LC_ALL": "C", **os.environ}
    )
    message = meaning_of(result.stderr.splitlines()[-1])
    assert message is not None
    assert message.kind == "user"
    assert classify(Evidence(exit_codes={0: result.returncode})).kind in ("user", "crash")


@pytest.mark.parametrize("argv", [["--nope"], [], ["--steps", "many"], ["--steps"]], ids=str)
def test_arguments_that_a_real_parser_refuses(argv: list[str], capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser(prog="longnet train")
    parser.add_argument("--steps", type=int, required="--nope" not in argv)
    with pytest.raises(SystemExit):
        parser.parse_args(argv)
    message = meaning_of(capsys.readouterr().err.splitlines()[-1])
    assert message is not None
    assert message.kind == "user"


def test_error_numbers_are_those_of_this_system():
    for number, name in [(28, "ENOSPC"), (122, "EDQUOT"), (12, "ENOMEM"), (98, "EADDRINUSE"), (8, "ENOEXEC")]:
        assert errno.errorcode[number] == name
    for number in (101, 104, 110, 111, 113):
        message = meaning_of(f"OSError: [Errno {number}] {os.strerror(number)}")
        assert message is not None
        assert message.kind == "network", os.strerror(number)


def test_words_of_torch_are_still_in_torch():
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        pytest.skip(f"no {library.name}")
    words = [
        "Connection was likely closed. Did the remote server shutdown or crash?",
        "The client socket has timed out after ",
        "The client socket has failed to connect to ",
        "TCP client failed to connect/validate to host ",
        "wait timeout after ",
        "barrier timeout after ",
        "Gloo connectFullMesh failed with ",
        "Application timeout caused pair closure",
        "Connection closed by peer ",
        " timed out in monitoredBarrier after ",
        " failed to pass monitoredBarrier in ",
    ]
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert [word for word in words if text.find(word.encode()) < 0] == []


def test_reasons_of_slurm():
    assert set(SLURM_REASONS.values()) <= set(KINDS)
    never = classify(Evidence(slurm_state="PENDING", slurm_reason="DependencyNeverSatisfied"))
    assert (never.kind, never.text) == ("user", "Slurm: DependencyNeverSatisfied, so it never starts")


def test_long_lines_are_cut_before_they_are_searched():
    assert meaning_of("x" * 100_000 + " [Errno 28]") is None
    assert meaning_of("[Errno 28] " + "x" * 100_000) is not None


@pytest.mark.parametrize(
    "part", ["[a] ", "[a]: ", "[", "[]", "a.", "a: ", "Error: ", "(pid 1, ", "sh: 1: ", "No ", " "]
)
def test_no_line_takes_long(part: str):
    """A pattern that backtracks without bound would take years for these."""
    assert meaning_of(part * 2000) is None
