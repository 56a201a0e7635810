"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.composition import command, exit_on_error
from wemask.config import run_config
from wemask.launching import launched, submit_planned


def run(cfg: Any) -> None:
    """One training run of the composed settings: here, in ranks of its own, or as a job."""
    if launched(cfg, "train.py"):
        return
    config = run_config(cfg)
    from wemask.training import train

    train(config)


if __name__ == "__main__":
    command("train", run)
    with exit_on_error():
        submit_planned()
