"""Compare base, training-free, SFT and WeMask-SFT item by item. `python evaluate.py --help`."""

import shlex
import sys
from typing import Any

from wemask.launch.launch import launched, submit_planned
from wemask.settings.composition import TYPED, command, exit_on_error, train_overrides
from wemask.settings.config import run_config

STUDIES: list[Any] = []  # those of this process: a sweep has several


def run(cfg: Any) -> None:
    """One comparison of the composed settings: here, or as a job."""
    if launched(cfg, "evaluate.py"):
        return
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from wemask.evaluate.evaluation import tasks_from_config
    from wemask.study import Study, evaluate

    hydra = HydraConfig.get()
    tasks: Any = OmegaConf.to_container(cfg.tasks, resolve=True)
    study = Study(
        config=run_config(cfg),
        arms=[cfg.arms] if isinstance(cfg.arms, str) else list(cfg.arms or ()),
        tasks=tasks_from_config(tasks),
        limit=cfg.limit,
        batch_size=cfg.batch_size,
        train_missing=cfg.train_missing,
        eval_seed=cfg.eval_seed,
        command=shlex.join(["python", "evaluate.py", *TYPED]),
        overrides=train_overrides(sys.argv[1:]),
        sweep=hydra.runtime.choices.get("experiment") or "sweep"
        if hydra.mode == RunMode.MULTIRUN
        else None,
    )
    evaluate(study)
    STUDIES.append(study)


if __name__ == "__main__":
    command("evaluate", run)
    with exit_on_error():
        submit_planned()
    if STUDIES and STUDIES[0].sweep:
        from wemask.study import finish_sweep

        with exit_on_error():
            finish_sweep(STUDIES)
