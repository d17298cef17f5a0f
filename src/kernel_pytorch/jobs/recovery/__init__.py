"""What went wrong in a job and what to do about it: pure functions, standard library only."""
