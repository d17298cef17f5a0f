"""What runs once on every node of a job: it finds the other nodes, starts the ranks and watches them."""
