"""Detect the ME Layer, soften it, fine-tune with it soft, save. `python train.py --help`."""

from typing import Any

from wemask.launch.launch import elsewhere, submit
from wemask.settings.composition import command, exit_on_error
from wemask.settings.config import run_config


def run(cfg: Any, typed: list[str]) -> list[Any]:
    """One training run of the composed settings: here, in ranks of its own, or as a job."""
    planned = elsewhere(cfg, "train.py")
    if planned is None:
        config = run_config(cfg, typed)
        from wemask.train.training import train

        train(config)
    return planned or []


if __name__ == "__main__":
    runs, typed = command("train", run)
    with exit_on_error():
        submit([job for planned in runs for job in planned], typed)
