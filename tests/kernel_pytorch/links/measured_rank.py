"""A rank that measures its links and prints them as JSON; started by the tests, on hosts that are shaped."""

import sys

import msgspec
import torch.distributed as dist

from kernel_pytorch.links.measure import measure_links

if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = measure_links(seconds=float(sys.argv[1]))
    sys.stdout.buffer.write(msgspec.json.encode(found))
    dist.destroy_process_group()
