"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.launch.launch import launched, submit_planned
from wemask.settings.composition import command, exit_on_error
from wemask.settings.config import run_config


def run(cfg: Any) -> None:
    """One training run of the composed settings: here, in ranks of its own, or as a job."""
    if launched(cfg, "train.py"):
        return
    config = run_config(cfg)
    from wemask.train.training import train

    train(config)


if __name__ == "__main__":
    command("train", run)
    with exit_on_error():
        submit_planned()
