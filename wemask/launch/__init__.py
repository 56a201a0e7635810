"""Where a command runs: here, in ranks of its own, or as a Slurm job.

`launch.py` first: it decides, `ranks.py` starts torchrun, `slurm.py` writes the sbatch script. May
import `train` and the rooms below it.
"""
