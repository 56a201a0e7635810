"""Compare base, training-free, SFT and WeMask-SFT item by item. `python evaluate.py --help`."""

import shlex
import sys
from typing import Any

from wemask.composition import command, train_overrides
from wemask.config import run_config


def run(cfg: Any) -> None:
    """One comparison of the composed settings."""
    from omegaconf import OmegaConf

    from wemask.arms import Experiment, evaluate
    from wemask.evaluation import tasks_from_config

    tasks: Any = OmegaConf.to_container(cfg.tasks, resolve=True)
    evaluate(
        Experiment(
            config=run_config(cfg),
            arms=[cfg.arms] if isinstance(cfg.arms, str) else list(cfg.arms or ()),
            tasks=tasks_from_config(tasks),
            limit=cfg.limit,
            batch_size=cfg.batch_size,
            train_missing=cfg.train_missing,
            command=shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
            overrides=train_overrides(sys.argv[1:]),
        )
    )


if __name__ == "__main__":
    command("evaluate", run)
