"""A delay on the way: passes on what is sent to TUN devices, some time later. Linux, root.

``python relay.py NAME ...`` makes a device of each name in its network namespace, says ``ready``, and takes
lines of standard input: the number of a device and its seconds. It ends with its input. What it passes on
leaves by the routes of its own namespace, wherever the devices have been moved to.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress

_SET_NAME = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_PACKETS_WITHOUT_HEADER = 0x0001 | 0x1000  # IFF_TUN | IFF_NO_PI
_MOST_BYTES = 65536


def main(names: list[str]) -> None:
    """Pass on packets until the input ends."""
    # Ranks use all cores; a packet that waits for one of them would come later than asked for.
    with suppress(PermissionError):  # of a control group without real time: late on a busy machine
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    devices = [_device(name) for name in names]
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    seconds = [0.0] * len(devices)
    waiting: list[deque[tuple[float, bytes]]] = [deque() for _ in devices]
    print("ready", flush=True)
    while True:
        due = min((queue[0][0] for queue in waiting if queue), default=None)
        patience = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select([0, *devices], [], [], patience)
        if 0 in ready:
            command = os.read(0, 4096).decode()
            if not command:
                return
            for line in command.splitlines():
                which, delay = line.split()
                seconds[int(which)] = float(delay)
        for number, device in enumerate(devices):
            if device in ready:
                _read(device, waiting[number], seconds[number])
            while waiting[number] and waiting[number][0][0] <= time.monotonic():
                packet = waiting[number].popleft()[1]
                if packet[0] >> 4 == 4:  # the kernel also sends IPv6 when a device comes up
                    out.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _SET_NAME, struct.pack("16sH22x", name.encode(), _PACKETS_WITHOUT_HEADER))
    return descriptor


def _read(device: int, queue: deque[tuple[float, bytes]], seconds: float) -> None:
    """All that is there now."""
    due = time.monotonic() + seconds
    try:
        while True:
            queue.append((due, os.read(device, _MOST_BYTES)))
    except BlockingIOError:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
