"""Options of a model that trains in a second."""

TINY = [
    *("--seq-len", "64", "--embed-dim", "16", "--num-layers", "1", "--num-heads", "2", "--ffn-dim", "32"),
    *("--threads", "1", "--device", "cpu", "--eval-windows", "2", "--sample-bytes", "8"),
]
