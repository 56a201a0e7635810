"""Figures and pages of a comparison; W&B.

`report.py` first; `*_plots.py` draw, `figures.py` chooses and describes, `page.py` renders;
`tracking.py` and `dashboard.py` are W&B. May import `compare` and the rooms below it.
"""
