"""The metrics of a model, in a stream: sinks, rigidity, diversity, massive activations.

`metrics.py` defines each as a pure function; `measurement.py` runs them over any number of texts.
Imports `decoder`, `detection` and `operator`.
"""
