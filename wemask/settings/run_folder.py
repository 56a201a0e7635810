"""Run folders: where a run's files are and whose they are.

A folder holds config.resolved.yaml, env.json, lock.json, me_layer.json, wemask_config.json,
metrics.jsonl, progress.json, checkpoints/ (`train/saved_state.py`: which is whole), final/,
wandb_run_id, and merged_base/ where a new adapter began on a merged one.
"""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from wemask.errors import RunFolderError
from wemask.files import read_text, saving, write_whole
from wemask.settings.config import RunConfig

LARGEST_CONFIG = 2**20  # bytes
PACKAGES = (
    *("wemask", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval"),
    *("math-verify", "scipy", "statsmodels"),
)


def open_run_folder(config: RunConfig) -> Path:
    """Create the run folder, or open it again when it is of the same settings.

    Raises:
        RunFolderError: it belongs to other settings (the differences are named), or cannot be
            written.
    """
    return open_folder(config.folder(), config.identity(), explicit=config.run_dir is not None)


def open_folder(folder: Path, identity: dict[str, Any], *, explicit: bool) -> Path:
    """Create or open the folder of whatever `identity` settles; see `open_run_folder`.

    `explicit`: the user named the folder, so what else it holds is not ours.
    """
    path = folder / "config.resolved.yaml"
    values = json.loads(json.dumps(identity, default=str))
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(path, values)
        elif explicit and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty and holds no run. Give another paths.run_dir."
            )
        else:
            write_whole(path, yaml.safe_dump(values, sort_keys=False))
        write_whole(folder / "env.json", json.dumps(environment(), indent=2) + "\n")
    return folder


class _Plain(yaml.SafeLoader):
    """YAML without aliases, which no config of ours has: a few lines of them stand for billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias {self.peek_event().start_mark}")
        return super().compose_node(parent, index)


def read_settings(path: Path) -> dict[str, Any]:
    """What a config.resolved.yaml says; RunFolderError: it cannot be read, or is damaged."""
    text = read_text(path, RunFolderError, limit=LARGEST_CONFIG)
    try:
        values = yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Give another run folder.") from error
    return values if isinstance(values, dict) else {}


def _check_same(path: Path, values: dict[str, Any]) -> None:
    ours, theirs = flat(values), flat(read_settings(path))
    different = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
    if different:
        shown = "; ".join(f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} now" for k in different)
        raise RunFolderError(
            f"{path.parent} belongs to a run of other settings ({shown}). Leave paths.run_dir out, "
            "or give an empty folder."
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def environment() -> dict[str, Any]:
    """Versions and machine, for env.json and the report."""
    return {"versions": {name: _version(name) for name in PACKAGES}, "machine": machine()}


def machine() -> str:
    """One line about this machine."""
    import torch

    device = f"{os.cpu_count()} CPU cores"
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {device}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
