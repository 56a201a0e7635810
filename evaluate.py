"""Compare base, training-free, SFT and WeMask-SFT item by item. `python evaluate.py --help`."""

import shlex
import sys
from typing import Any

from wemask.launch.launch import command
from wemask.settings.composition import exit_on_error, train_overrides
from wemask.terminal import session


def run(cfg: Any, typed: list[str]) -> Any:
    """One comparison of the composed settings; returns its `Study`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from wemask.evaluate.evaluation import tasks_from_config
    from wemask.settings.config import run_config
    from wemask.study import Study, evaluate

    hydra = HydraConfig.get()
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    study = Study(
        config=run_config(cfg, train_overrides(typed)),
        arms=values["arms"],
        tasks=tasks_from_config(values.get("tasks")),  # none where tasks=[]
        limit=cfg.limit,
        batch_size=cfg.batch_size,
        train_missing=cfg.train_missing,
        eval_seed=cfg.eval_seed,
        command=shlex.join(["python", "evaluate.py", *typed]),
        overrides=train_overrides(sys.argv[1:]),
        sweep=hydra.runtime.choices.get("experiment") or "sweep"
        if hydra.mode == RunMode.MULTIRUN
        else None,
    )
    evaluate(study)
    return study


if __name__ == "__main__":
    with exit_on_error(), session():
        studies = command("evaluate", run)
        if studies and studies[0].sweep:
            from wemask.study import finish_sweep

            finish_sweep(studies)
