"""Several processes and Slurm: how a run is spread over machines."""
