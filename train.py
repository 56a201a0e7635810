"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.launch.launch import command
from wemask.settings.config import run_config


def run(cfg: Any, typed: list[str]) -> None:
    """One training run of the composed settings."""
    config = run_config(cfg, typed)
    from wemask.train.training import train

    train(config)


if __name__ == "__main__":
    command("train", run)
