"""What log lines, and the states and reasons of Slurm, say about a failure.

A pattern is the fixed part of a message as the program prints it, in its own case and punctuation, and it
matches whole words only: a sentence about a fault is not a fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPES: dict[str, str | None] = {
    "cancelled": None,
    "no_space": "software_failure",
    "oom": "oom_failure",
    "user": "software_failure",
    "timeout": "timeout_failure",
    "stopped": None,
    "gpu": "gpu_failure",
    "first_node_lost": "node_failure",
    "node_lost": "node_failure",
    "hang": "timeout_failure",
    "crash": "software_failure",
    "network": "network_failure",
    "unknown": None,
    "done": None,
}
"""Value of FailureType by kind; None: not a failure, or not known which.

Of several kinds that fit, the first is the cause of the others: the loss of a node breaks connections, and so
does a rank that crashes.
"""
KINDS = tuple(TYPES)


@dataclass(frozen=True)
class Message:
    """A row of the table of messages."""

    pattern: re.Pattern[str]
    kind: str
    meaning: str
    starting_only: bool = False
    """Holds only before the first step: later the same message has other causes."""

    @property
    def type(self) -> str | None:
        """Value of FailureType."""
        return TYPES[self.kind]


_PREFIX = r"^(?:\[[^\[\]]*\]:? ?){0,4}"
"""Such as ``[rank3]: `` or ``[2]:``."""
_RAISED = _PREFIX + r"(?:[A-Za-z_][\w.]*\.)?"
"""Up to the name of an exception, where a traceback ends."""
_USAGE = _PREFIX + r"\S+(?: \S+)?: error: "
"""Up to the error of an argument parser."""
_GPU_XIDS = "46|48|54|6[1-4]|74|79|92|94|95|109|110|119|120|136|140|143|14[4-9]|150|151|155|156|158"
"""Those that the GPU or its links are to blame for, as in :mod:`kernel_pytorch.watch.health.xids`."""
_PROGRAM_XIDS = "13|31|43|45"

_STARTING = {
    "a file does not exist": (r"\[Errno 2\] No such file or directory:", _RAISED + r"FileNotFoundError:"),
    "a file may not be used": (r"\[Errno 13\] Permission denied:", _RAISED + r"PermissionError:"),
    "no GPU: the job asks for none, or the node has no driver": (
        r"No CUDA GPUs are available",
        r"CUDA error: no CUDA-capable device is detected",
        r"Found no NVIDIA driver on your system",
    ),
}
_MEANINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "cancelled": {"cancelled by scancel": (r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*",)},
    "no_space": {
        # Slurm reports cgroups that it cannot make with the same words; jobs run on all the same.
        "the disk is full": (r"^(?!.*cgroup).*\bNo space left on device", r"\[Errno 28\]"),
        "the disk quota is used up": (r"Disk quota exceeded", r"\[Errno 122\]"),
        "/dev/shm is full": (
            r"might be caused by insufficient shared memory \(shm\)",
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) is killed by signal: Bus error",
        ),
    },
    "oom": {
        "the GPU's memory is used up": (
            r"torch\.(?:cuda\.)?OutOfMemoryError(?=:|$)",
            r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate",
            r"MPS backend out of memory \(MPS allocated",
            r"(?:CUDA|HIP) error: out of memory",
            r"CUDA_ERROR_OUT_OF_MEMORY",
            r"Cuda failure (?:\d+ )?'out of memory'",
            r"CU(?:BLAS|DNN|SPARSE)_STATUS_ALLOC_FAILED",
            r"RESOURCE_EXHAUSTED: Out of memory",
        ),
        "the host's memory is used up": (
            r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)",
            _RAISED + r"_?(?:Array)?MemoryError(?=:|$)",
            r"what\(\):\s+std::bad_alloc",
            r"\[Errno 12\]",
            r"(?<=: )Cannot allocate memory(?=$| \(12\))",
        ),
        "the kernel killed a process for want of memory": (
            r"[Oo]ut of memory: Kill(?:ed)? process \d+",
            r"Memory cgroup out of memory: Kill(?:ed)? process \d+",
            r"invoked oom-killer: gfp_mask",
            r"oom-kill:constraint",
        ),
        "Slurm's memory limit was reached": (
            r"Detected \d+ oom[-_]kill event",
            r"srun: error: \S+: tasks? [\d,\[\]-]+: Out Of Memory",
            r"srun: Exceeded job memory limit",
            r"exceeded (?:virtual )?memory limit \(\d+ ?> ?\d+\), (?:being killed|cancelling it)",
        ),
        "the container's memory limit was reached": (r"[Rr]eason:\s+OOMKilled",),
    },
    "user": {
        "a Python module is not installed": (
            _RAISED + r"ModuleNotFoundError: No module named",
            r"python[\d.]*: No module named",
        ),
        "a Python module lacks a name": (_RAISED + r"ImportError: cannot import name",),
        "the program is not valid Python": (_RAISED + r"(?:SyntaxError|IndentationError|TabError):",),
        "an argument is wrong": (
            _USAGE + r"unrecognized arguments:",
            _USAGE + r"the following arguments are required:",
            _USAGE + r"argument \S+(?: \S+)?: (?:invalid|expected|not allowed|ignored|conflicting)",
            _USAGE + r"ambiguous option:",
        ),
        "the program does not exist": (
            r"can't open file '[^']*': \[Errno \d+\]",
            r"(?:sh|slurm_script|script\.sh): (?:line )?(?:\d+: )?\S+: (?:command )?not found$",
            r"(?:ba|da|z|k)sh: (?:line )?(?:\d+: )?\S+: (?:command )?not found$",
        ),
        "the program is not for this machine": (r"\[Errno 8\]", r"(?<=: )Exec format error$"),
        "more ranks than GPUs": (
            r"CUDA error: invalid device ordinal",
            r"Duplicate GPU detected : rank \d+ and rank \d+",
        ),
        "torch was not built for this GPU or driver": (
            r"CUDA error: no kernel image is available for execution on the device",
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"The NVIDIA driver on your system is too old",
            _RAISED + r"AssertionError: Torch not compiled with CUDA enabled",
            r"Distributed package doesn't have NCCL built in",
        ),
        "the checkpoint is of another model": (r"Error\(s\) in loading state_dict for",),
        "Slurm refuses what the job asks for": (
            r"(?:sbatch|srun|salloc): error: (?:Batch job submission failed|Unable to allocate resources): "
            r"(?:Invalid|Requested|More processors)",
        ),
    },
    "timeout": {"Slurm's time limit was reached": (r"CANCELLED AT \S+ DUE TO TIME LIMIT",)},
    "stopped": {"Slurm took the nodes back": (r"CANCELLED AT \S+ DUE TO (?:PREEMPTION|JOB REQUEUE)",)},
    "gpu": {
        "the driver reports a fault of a GPU": (
            rf"NVRM: Xid \([^)]*\): (?:{_GPU_XIDS})(?=,)",
            r"HW Exception by GPU node-\d+",
            r"amdgpu: GPU reset(?: begin|\(\d+\) failed)",
        ),
        "a GPU does not answer": (
            r"GPU has fallen off the bus(?=\.|$)",
            r"Unable to determine the device handle for (?:GPU|gpu)\d*",
            r"GPU is lost\.",
        ),
        "GPU memory is faulty": (
            r"CUDA error: uncorrectable ECC error encountered",
            r"CUDA_ERROR_ECC_UNCORRECTABLE",
        ),
        "an NVLink or its switch is faulty": (
            r"CUDA error: uncorrectable NVLink error detected",
            r"CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
            r"SXid \([^)]*\): \d+, Fatal",
            r"CUDA error: system not yet initialized",
        ),
        "a GPU is not usable": (
            r"CUDA-capable device(?:\(s\) is/are|s are) busy or unavailable",
            r"CUDA error: no CUDA-capable device is detected",
            r"No CUDA GPUs are available",
            r"CUDA error: unknown error",
        ),
    },
    "node_lost": {
        "Slurm reports the loss of a node": (
            r"CANCELLED AT \S+ DUE TO NODE FAILURE",
            r"srun: error: Node failure on \S+",
            r"JobId=\S+ (?:cancelled by|due to) node failure",
        ),
    },
    "hang": {
        "a rank did not answer in time": (
            r"Watchdog caught collective operation timeout:",
            r"Timed out waiting \d+ms for (?:recv|send) operation to complete",
            r"[Rr]ank \d+ (?:failed to pass|timed out in) monitoredBarrier",
            r"barrier timeout after \d+ms",
        ),
        "a call of CUDA or NCCL did not return": (
            r"watchdog got stuck for \d+ seconds",
            r"Heartbeat monitor timed out! Process will be terminated",
        ),
    },
    "crash": {
        "a kernel failed": (
            r"CUDA error: an illegal memory access was encountered",
            r"CUDA error: device-side assert triggered",
            r"CUDA error: misaligned address",
            r"CUDA error: unspecified launch failure",
            rf"NVRM: Xid \([^)]*\): (?:{_PROGRAM_XIDS})(?=,)",
            r"Memory access fault by GPU node-\d+",
            r"CU(?:BLAS|DNN|SPARSE)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR)",
        ),
        "a process failed outside Python": (
            r"Fatal Python error:",
            r"[Ss]egmentation fault(?=\s+\(core dumped\)|$)",
            r"double free or corruption(?= \()",
            r"(?:malloc|free)\(\): (?:invalid|corrupted)",
            r"terminate called after throwing an instance of",
        ),
        "a data loader's process ended": (
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal|exited unexpectedly)",
        ),
        "a file could not be read or written": (
            r"Pytorch(?:StreamWriter|StreamReader) failed",
            r"\[Errno (?:5|30|116)\]",
        ),
        "too many files or threads": (r"\[Errno 24\]", r"RuntimeError: can't start new thread"),
    },
    "network": {
        "the connection to a rank broke": (
            r"ncclRemoteError:",
            r"remote process exited or there was a network error",
            r"ncclSystemError:",
            r"Call to (?:recv|send|connect|recv from|send to|connect to) \S+ failed :",
            r"Connection closed by remote peer \S+",
            r"Connection closed by peer(?= \[)",
            r"(?:Read|Write|readv|writev)(?: error)? \[[^\]]*\]:\d+: (?:Connection|Broken pipe)",
            r"Application timeout caused pair closure",
            r"Gloo connectFullMesh failed with",
        ),
        "InfiniBand failed": (
            r"NET/IB : Got completion from peer \S+ with (?:error|status)",
            r"NET/IB : (?:\S+ )?Got async event : (?:port error|local catastrophic error)",
        ),
        "the store or a rank cannot be reached": (
            r"Connection was likely closed\. Did the remote server shutdown or crash\?",
            r"The client socket has (?:timed out after|failed to connect to)",
            r"TCP client failed to connect/validate to host \S+ - timed out",
            r"wait timeout after \d+ms, keys:",
            _RAISED + r"RuntimeError: Socket Timeout",
            _RAISED + r"(?:DistNetworkError|DistStoreError):",
            _RAISED + r"Rendezvous(?:Connection|Timeout|Closed)Error(?=:|$)",
        ),
        "a host cannot be reached": (
            _RAISED + r"(?:ConnectionResetError|ConnectionRefusedError|TimeoutError): \[Errno \d+\]",
            r"\[Errno (?:101|104|110|111|113)\]",
            r"(?:No route to host|Network is unreachable)(?=$| \()",
            r"(?:Temporary failure in name resolution|Name or service not known)(?=$|>|\))",
        ),
        "the port is in use": (r"code: -98, name: EADDRINUSE", r"\[Errno 98\]"),
    },
}


def _message(kind: str, meaning: str, pattern: str, starting_only: bool = False) -> Message:
    return Message(re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])"), kind, meaning, starting_only)


MESSAGES = (
    *(_message("user", meaning, row, True) for meaning, rows in _STARTING.items() for row in rows),
    *(
        _message(kind, meaning, row)
        for kind in KINDS
        for meaning, rows in _MEANINGS.get(kind, {}).items()
        for row in rows
    ),
    _message("crash", "an exception was not caught", _RAISED + r"[A-Za-z_]\w*(?:Error|Exception):(?= .)"),
)
"""A line means what the first row says that it matches."""

SLURM_STATES = {
    "BOOT_FAIL": "node_lost",
    "CANCELLED": "cancelled",
    "COMPLETED": "done",
    "DEADLINE": "cancelled",
    "NODE_FAIL": "node_lost",
    "OUT_OF_MEMORY": "oom",
    "PREEMPTED": "stopped",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
}
"""Kind by state of a job. Other states do not say why it ended (FAILED), or it has not."""
SLURM_REASONS = {
    "AccountNotAllowed": "user",
    "BadConstraints": "user",
    "DependencyNeverSatisfied": "user",
    "InvalidAccount": "user",
    "InvalidQOS": "user",
    "NodeDown": "node_lost",
    "OutOfMemory": "oom",
    "PartitionNodeLimit": "user",
    "PartitionTimeLimit": "user",
    "QOSNotAllowed": "user",
    "ReservationDeleted": "user",
    "TimeLimit": "timeout",
}
"""Kind by reason of a job; one with "user" never starts. Other reasons say nothing about a failure."""
_LONGEST = 2000


def meaning_of(line: str, starting: bool = False) -> Message | None:
    """The row of :data:`MESSAGES` for a line; None if there is none.

    Args:
        line: one line, of which the first 2,000 characters are read.
        starting: the rank had not begun its first step.
    """
    line = line[:_LONGEST].rstrip()
    for message in MESSAGES:
        if (starting or not message.starting_only) and message.pattern.search(line):
            return message
    return None
