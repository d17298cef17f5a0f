"""The links between the ranks of a process group: measured, then chosen."""
