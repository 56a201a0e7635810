"""An arm under the settings of a run: what is loaded, and how its results are known again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from wemask.checkpoint.adapter import is_adapter, read_adapter, with_adapter
from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.checkpoint.save_load import CONFIG_NAME, load, read_config
from wemask.checkpoint.vocabulary import fit_vocabulary
from wemask.data.chat import ensure_chat_template
from wemask.errors import ModelError
from wemask.evaluate.arms import ARMS, Arm
from wemask.files import digest
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig
from wemask.settings.config import RunConfig
from wemask.train.prepare import detect_run, load_base
from wemask.train.saved_state import is_finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmRun:
    """An arm with its settings: what is loaded, and how its results are known again."""

    name: str
    config: RunConfig
    """Of the run, with the arm's own method and operator."""

    @classmethod
    def of(cls, name: str, config: RunConfig) -> "ArmRun":
        """The run of arm `name` under an experiment's settings.

        Raises:
            ConfigError: the control's settings contradict those of the operator.
        """
        arm = ARMS[name]
        changes = dict(arm.changes)
        if arm.drawn:
            changes["seed"] = config.operator.seed + config.seed
        operator = dataclasses.replace(config.operator, **changes)
        run = cls(
            name=name, config=dataclasses.replace(config, operator=operator).with_method(arm.method)
        )
        typed = (*config.typed, *run.words)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, typed=typed))

    @property
    def arm(self) -> Arm:
        return ARMS[self.name]

    @property
    def words(self) -> list[str]:
        """What tells its training from the others on the command line of train.py."""
        drawn = {"seed": self.config.operator.seed} if self.arm.drawn else {}
        changes = {**self.arm.changes, **drawn}.items()
        return [f"method={self.config.method}", *(f"operator.{k}={v}" for k, v in changes)]

    @property
    def operator(self) -> WeMaskConfig | None:
        """The operator that is on when the arm answers."""
        return self.config.operator if self.config.softens or self.arm.softened_after else None

    @property
    def folder(self) -> Path:
        """Where the arm's `eval/` goes."""
        return self.config.folder() / self.arm.subfolder

    @property
    def final(self) -> Path:
        """The trained weights."""
        return self.config.folder() / "final"

    @property
    def missing(self) -> bool:
        """Whether it has to be trained first (RunFolderError: it was, and lost its weights)."""
        return self.config.trains and not is_finished(self.config.folder())

    @property
    def seed(self) -> int | None:
        """The seed of training or of a control's draw; None where nothing is drawn."""
        if self.config.trains:
            return self.config.seed
        return self.config.operator.seed if self.arm.drawn else None

    def settings(self) -> dict[str, Any]:
        """All that can change its result, but for the seed: equal in runs that are repetitions."""
        values = {k: v for k, v in self.config.identity().items() if k != "seed"}
        if self.operator is not None:
            values["operator"] = self.operator.to_dict()
            values |= self.config.detection_settings()
            if self.arm.drawn:
                del values["operator"]["seed"]
        return values

    def fingerprint(self) -> str:
        """Changes with the weights and with the operator, and when a run is trained again."""
        files = sorted(self.final.glob("*.safetensors")) if self.config.trains else []
        stamp = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        return digest([self.name, self.settings(), self.seed, stamp, *self._calibration()])

    def _calibration(self) -> list[str]:
        """The gates, where they were calibrated again: `wemask recalibrate` changes no weights."""
        if self.config.method != "wemask" or not (self.final / CONFIG_NAME).exists():
            return []
        values = read_config(self.final)
        return [digest(values["report"]["gates"])] if values.get("calibrated") else []

    def about(self, budget: Mapping[str, Any] | None) -> dict[str, Any]:
        """What `wemask compare` needs to know about these results, as plain values."""
        return {
            "arm": self.name,
            "method": self.config.method,
            "seed": self.seed,
            "settings": self.settings(),
            "operator": self.operator.to_dict() if self.operator is not None else None,
            "run_folder": str(self.config.folder()) if self.config.trains else None,
            "budget": dict(budget) if budget is not None else None,
        }

    def chat_template(self) -> str:
        """The chat template that it is asked with; no weights are read for it."""
        model = self.config.model
        if self.config.trains:  # without a softened model's config, which transformers warns of
            found = load_tokenizer(str(self.final), config=PretrainedConfig())
        else:
            name, folder = model.path, Path(model.path).expanduser()
            if is_adapter(folder) and not (folder / "tokenizer_config.json").exists():
                name = read_adapter(folder)["base_model_name_or_path"]
            found = load_tokenizer(
                name, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        ensure_chat_template(found)
        return found.chat_template

    def load(self) -> tuple[nn.Module, Any]:
        """Model and tokenizer, softened where the arm is.

        Raises:
            WemaskError: the run is damaged, or the model cannot be softened.
        """
        model, tokenizer = self._load()
        if tokenizer is None:
            raise ModelError(f"{self.final} has no tokenizer: restore it, or train the run again.")
        ensure_chat_template(tokenizer)  # also of a run that was trained before this was done
        return model, tokenizer

    def _load(self) -> tuple[nn.Module, Any]:
        run, final = self.config, str(self.final)
        options = {k: v for k, v in run.model.load_options().items() if k != "revision"}
        if run.method == "wemask":
            return load(final, **options)
        if not run.trains:
            model, tokenizer, _ = load_base(run)
        else:
            tokenizer = load_tokenizer(final)
            if is_adapter(self.final):
                base: Any = load_base(run)[0]
                if run.model.adapter == "continue":  # final/ holds that adapter as it is now
                    base = base.unload()
                model = with_adapter(base, self.final, read_adapter(self.final))
            else:
                model = load_model(final, **options)
            fit_vocabulary(model, tokenizer, final)
        if self.operator is not None:
            soften(model, detect_run(run, model, tokenizer), self.operator)
        return model, tokenizer
