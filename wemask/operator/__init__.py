"""The idea: one equation, and what puts it into a model.

Start with `equation.py` (the equation), then `settings.py` (its choices) and `layers.py` (how a
decoder layer softens its own attention). `patch.py` does it to a model, `handle.py` undoes it. May
import `detection` (its report) and `decoder`.
"""
