"""The machine and the job: what hardware is there, how it is feeling, where work goes."""
