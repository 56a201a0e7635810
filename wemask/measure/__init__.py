"""The metrics of a model, in a stream: sinks, rigidity, diversity, massive activations.

`metrics.py` first: it defines each as a pure function; `measurement.py` runs them over any number
of texts. May import `operator`, `data` and the rooms below them.
"""
