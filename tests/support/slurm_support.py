"""Stand-ins for Slurm's commands."""

import os
from pathlib import Path

import pytest


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **bodies: str) -> None:
    """Stand-ins for Slurm's commands, first on the path."""
    place = folder / "programs"
    place.mkdir(exist_ok=True)
    for name, body in bodies.items():
        (place / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
