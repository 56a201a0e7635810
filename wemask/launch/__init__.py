"""Where a command runs: here, in ranks of its own, or as a Slurm job.

`launch.py` decides, `ranks.py` starts torchrun, `slurm.py` writes the sbatch script. Imports
`settings` and `train`.
"""
