"""Models whose massive activations are known by construction: to try anything against.

`planted.py` first: `plant(model, layer=..., ...)`. Imports `decoder`; `folder.py`
also `checkpoint`.
"""
