"""Figures and pages of a comparison; W&B.

`report.py` first. Imports `compare`, and `train` for the W&B service.
"""
