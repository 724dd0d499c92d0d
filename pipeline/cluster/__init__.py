"""Several processes and Slurm: how a run uses several machines."""
