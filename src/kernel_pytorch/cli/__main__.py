"""``python -m kernel_pytorch.cli``: the command ``kernel-pytorch``."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
