"""``python -m dilated_attention_pytorch.train``: the same as ``longnet train``."""

import sys

from ..cli import main

sys.exit(main(["train", *sys.argv[1:]]))
