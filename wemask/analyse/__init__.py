"""`wemask analyse`: causal experiments on a model, their tables and their page.

`analysis.py` first; `experiments.py` says what is done, `conditions.py` and `interventions.py` how.
May import `report` and the rooms below it.
"""
