"""An arm under the settings of a run: what is loaded, and how its results are known again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.checkpoint.save_load import load
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
        return digest([self.name, self.settings(), self.seed, stamp])

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

    def load(self) -> tuple[nn.Module, Any]:
        """Model and tokenizer, softened where the arm is.

        Raises:
            WemaskError: the run is damaged, or the model cannot be softened.
        """
        run, final = self.config, str(self.final)
        options = {k: v for k, v in run.model.load_options().items() if k != "revision"}
        if run.method == "wemask":
            return load(final, **options)
        if not run.trains:
            model, tokenizer, _ = load_base(run)
        else:
            tokenizer = load_tokenizer(final)
            if (self.final / "adapter_config.json").exists():
                from peft import PeftModel

                base: Any = load_base(run)[0]
                if run.model.adapter == "continue":  # final/ holds that adapter as it is now
                    base = base.unload()
                model = PeftModel.from_pretrained(base, final).eval()
            else:
                model = load_model(final, **options)
        if self.operator is not None:
            soften(model, detect_run(run, model, tokenizer), self.operator)
        return model, tokenizer
