"""Records -> examples for SFT, checked as a whole before anything is trained.

`examples.py` first; `folders.py` finds files and `records.py` reads them, `layouts.py` knows their
columns, `messages.py` and `conversations.py` what stands in them, `chat.py` the template and the
loss mask, which `audit.py` lays over all; `validation.py` keeps some apart; `schema.py` checks
settings and results.json by their types. May import `embedded`, `files` and errors.
"""
