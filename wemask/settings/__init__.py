"""Command line -> Hydra -> typed settings, and the folder of a run.

`composition.py` composes, `config.py` types; below them there are only plain arguments.
Imports `data`, `operator` and `detection` for their settings.
"""
