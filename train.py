"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.composition import command
from wemask.config import run_config


def run(cfg: Any) -> None:
    """One training run of the composed settings."""
    config = run_config(cfg)
    from wemask.training import train

    train(config)


if __name__ == "__main__":
    command("train", run)
