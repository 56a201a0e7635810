"""Where things are in any transformers decoder, and what passes through it.

`parts.py` finds layers, attention, FFN and norms in 39 families; `passage.py` hands over what flows
through them. Imports nothing of ours but errors.
"""
