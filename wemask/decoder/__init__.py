"""Where things are in any transformers decoder, and what passes through it.

`parts.py` first: it finds layers, attention, FFN and norms in 39 families; `passage.py` hands over
what flows through them. May import errors only.
"""
