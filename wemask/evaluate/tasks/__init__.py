"""Benchmarks of our own, as lm-eval task files, and the code that loads any benchmark by name.

The YAML files here are ordinary lm-eval tasks: `lm_eval --include_path wemask/evaluate/tasks` runs
them too. `task_config.py` first, then `loading.py`; `functions.py` is what the YAML files call.
"""
