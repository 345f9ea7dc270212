"""Grids of runs: the file, local processes or Slurm, the workers, estimates, tracking."""
