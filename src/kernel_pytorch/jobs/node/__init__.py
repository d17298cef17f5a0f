"""What runs once on each node of a job. Standard library only."""
