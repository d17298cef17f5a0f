"""``python -m kernel_pytorch.cli.profile.one_rank STORE PARENT RANK SIZE COMMAND ...``: see :mod:`.local`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .. import PROGRAM
from .ranks import in_group


def main(argv: Sequence[str]) -> int:
    """Run a command as one of the ranks that the process PARENT has started; ends with it."""
    store, parent, rank, size, *arguments = argv
    if sys.platform == "linux":
        from ...jobs.rank.parent import die_with_parent

        die_with_parent()
    if os.getppid() != int(parent):
        return 1
    return in_group(PROGRAM, arguments, int(rank), int(size), store)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
