"""By how much, how sure: evaluated runs -> paired comparisons on the same items.

`compare.py` first; `paired.py`, `intervals.py` and `power.py` are the statistics, `results.py` is
what results.json holds, `verdict.py` what it allows one to say. May import `evaluate` and the rooms
below it.
"""
