"""The machine: facts, which are read once, and readings, which are sampled."""
