"""Training a byte-level LongNet: data, loop, checkpoints and the ``longnet train`` command."""
