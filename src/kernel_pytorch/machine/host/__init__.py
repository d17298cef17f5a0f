"""The host's own files: CPUs, memory, network, storage, PCI bus; facts and readings."""
