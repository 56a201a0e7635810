"""`wemask analyse`: causal experiments on a model, their tables and their page.

`analysis.py` first; `experiments.py` says what is done, `conditions.py` and `interventions.py` how.
Imports `measure` and `report`.
"""
