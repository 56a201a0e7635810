"""Our version: pyproject.toml says the same, and a test holds both together."""

__version__ = "0.1.0"
