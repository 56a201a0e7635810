"""The W&B workspace of a project: which panel shows which of the keys that we log.

Built with wandb-workspaces (`pip install 'wemask[dashboard]'`), so that nobody clicks it together:

    wemask dashboard --project wemask --entity TEAM
"""

from collections.abc import Sequence
from typing import Any

from wemask.errors import ConfigError

TRAINING = {
    "loss": ["train/loss", "eval/loss"],
    "token accuracy": ["train/mean_token_accuracy"],
    "learning rate": ["train/learning_rate"],
    "gradient norm": ["train/grad_norm"],
}
SOFTENING = {
    "strength": ["train/wemask/strength"],
    "tokens touched in the probe texts": ["train/wemask/tokens_touched"],
    "separation of the gates": ["train/wemask/separation"],
    "layers whose gate tells": ["train/wemask/gates"],
    "massive magnitude": ["train/wemask/massive_max", "train/wemask/massive_magnitude"],
    "massive ratio": ["train/wemask/massive_ratio"],
    "sink mass": ["train/wemask/sink_mass", "train/wemask/sink_mass_first"],
    "sink rate": ["train/wemask/sink_rate", "train/wemask/sink_rate_first"],
    "effective rank of the attention input": ["train/wemask/effective_rank"],
    "anisotropy of the attention input": ["train/wemask/anisotropy"],
    "perplexity of the probe texts": ["train/wemask/probe_perplexity"],
}


def sections(tasks: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Section -> panel -> keys; docs/wandb.md shows it."""
    compared = {
        f"{task}: difference from the reference arm": [
            f"compare/{task}/{key}" for key in ("delta", "lo", "hi")
        ]
        for task in tasks
    }
    return {
        "Benchmarks": {f"{task}: accuracy": [f"bench/{task}/accuracy"] for task in tasks},
        "Differences": {**compared, **{f"{t}: p": [f"compare/{t}/p"] for t in tasks}},
        "Softening during training": SOFTENING,
        "Training": TRAINING,
    }


def workspace(project: str, entity: str, tasks: Sequence[str]) -> Any:
    """Build the workspace; `.save()` sends it to W&B.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "The workspace is built by wandb-workspaces. Type: pip install 'wemask[dashboard]'."
        ) from error
    bars = ("Benchmarks", "Differences")
    made = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[
                panels.BarPlot(title=title, metrics=list(keys))
                if name in bars
                else panels.LinePlot(title=title, y=list(keys))
                for title, keys in content.items()
            ],
        )
        for name, content in sections(tasks).items()
    ]
    figures = panels.MediaBrowser(media_keys=["figures/forest", "figures/softening_effect"])
    made.insert(2, workspaces.Section(name="Figures", is_open=True, panels=[figures]))
    return workspaces.Workspace(name="wemask", project=project, entity=entity, sections=made)
