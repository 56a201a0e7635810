"""One forward pass over texts -> where massive activations are born, and how to tell them.

`detect.py` first: it runs it; `emergence.py` is the rule, `gates.py` the thresholds of each layer,
and `me_layer.py` what is found and saved as me_layer.json. May import `decoder`.
"""
