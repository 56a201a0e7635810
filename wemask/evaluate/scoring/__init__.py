"""Right or wrong, refused or not: pure functions of texts.

`answers.py` first. Imports nothing of ours but errors.
"""
