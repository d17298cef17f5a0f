"""The command ``longnet`` from its first moment on: Ctrl-C while PyTorch is imported is no traceback.

A module of its own, because importing one of ``dilated_attention_pytorch`` imports PyTorch first.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run ``longnet`` with the arguments of the process and return its exit status."""
    try:
        from dilated_attention_pytorch.cli import main as longnet

        return longnet()
    except KeyboardInterrupt:
        print("longnet: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C while the interpreter exits
