"""Command line -> Hydra -> typed settings, and the folder of a run.

First `composition.py`, which composes, then `config.py`, which types; below `train`, `launch` and
`evaluate` there are only plain arguments. May import `operator`, `data` and the rooms below them.
"""
