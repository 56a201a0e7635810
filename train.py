"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.launch.launch import command
from wemask.settings.composition import exit_on_error
from wemask.terminal import session


def run(cfg: Any, typed: list[str]) -> None:
    """One training run of the composed settings."""
    from wemask.settings.config import run_config
    from wemask.train.training import train

    train(run_config(cfg, typed))


if __name__ == "__main__":
    with exit_on_error(), session():
        command("train", run)
