"""Jobs on Slurm, by its own commands and their text: nothing is linked, and no daemon of ours is needed."""
