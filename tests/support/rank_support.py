"""An environment in which nobody has started ranks."""

import os
import sys

import pytest

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def no_ranks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For `bare = pytest.fixture(no_ranks)`."""
    for name in list(os.environ):
        if name in RANKS or name.startswith(("SLURM_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1"])
    return monkeypatch
