"""Who may send next, and the one thread that posts."""
