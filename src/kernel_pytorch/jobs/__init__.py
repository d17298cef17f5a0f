"""Jobs: one specification from a laptop to a cluster, and recovery from what goes wrong on the way."""
