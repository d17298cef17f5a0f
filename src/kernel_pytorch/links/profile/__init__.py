"""What the collectives of a job took, why, and because of whom."""
