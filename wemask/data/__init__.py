"""Records -> examples for SFT, checked as a whole before anything is trained.

`examples.py` first; `records.py` reads files, `layouts.py` knows their columns, `chat.py` the
template and the loss mask; `schema.py` checks settings and
files by their types. Imports nothing of ours but errors and the embedded problems.
"""
