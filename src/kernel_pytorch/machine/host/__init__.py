"""Facts and readings of the host from the kernel's files: CPUs, memory, network, storage, PCI bus."""
