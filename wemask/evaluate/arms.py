"""What each arm is: which run, with which operator, and what it is compared with.

An arm is a way to answer the question of an experiment: the model as it is, softened, fine-tuned,
fine-tuned softened. A control is the same with an operator that should not work as well, at the
same budget; an A/A arm is another arm once more, and should differ from it in nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.checkpoint.save_load import load
from wemask.files import digest
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig
from wemask.settings.composition import conf_dir
from wemask.settings.config import RunConfig
from wemask.train.prepare import detect_run, load_base

CONTROLS = (
    *("random_dims", "lowest_dims", "uniform", "wrong_layers", "wrong_token"),
    *("set_zero", "set_mean"),
)
DRAWN = ("random_dims", "wrong_token")  # another seed is another control


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of an experiment."""

    method: str
    """The method whose run it is (`config.METHODS`)."""
    reference: str | None = None
    """The arm without the operator: what a gain of this one is a gain over."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a control's operator."""
    control_of: str | None = None
    """The real arm that a control stands beside."""
    drawn: bool = False
    """The control has a seed of its own."""
    softened_after: bool = False
    """The operator is put into the trained model only now."""
    again: bool = False
    """An A/A arm: its reference once more, in batches of another size."""

    @property
    def subfolder(self) -> str:
        """Where an arm that shares its run with another keeps its results."""
        return "softened" if self.softened_after else "again" if self.again else ""


def control_changes(control: str) -> dict[str, Any]:
    """What conf/operator/<control>.yaml changes in the real operator of paper.yaml."""
    folder = conf_dir() / "operator"
    real, other = (
        yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("paper", control)
    )
    return {key: value for key, value in other.items() if value != real[key]}


def _controls() -> dict[str, Arm]:
    return {
        f"{name}{suffix}": Arm(
            method=method,
            changes=control_changes(name),
            reference=reference,
            control_of=real,
            drawn=name in DRAWN,
        )
        for suffix, method, reference, real in (
            ("", "training_free", "base", "training_free"),
            ("_sft", "wemask", "sft", "wemask_sft"),
        )
        for name in CONTROLS
    }


ARMS: dict[str, Arm] = {
    "base": Arm(method="base"),
    "base_again": Arm(method="base", reference="base", again=True),
    "training_free": Arm(method="training_free", reference="base"),
    "sft": Arm(method="sft"),
    "wemask_sft": Arm(method="wemask", reference="sft"),
    "sft_then_wemask": Arm(method="sft", reference="sft", softened_after=True),
    **_controls(),
    # no control, which should do less, but a variant
    "primary_tokens": Arm(
        method="training_free", reference="base", changes=control_changes("primary_tokens")
    ),
    "primary_tokens_sft": Arm(
        method="wemask", reference="sft", changes=control_changes("primary_tokens")
    ),
}


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
        run = dataclasses.replace(config, operator=operator).with_method(arm.method)
        return cls(name=name, config=run)

    @property
    def arm(self) -> Arm:
        return ARMS[self.name]

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
        """Whether it has to be trained first."""
        return self.config.trains and not self.final.exists()

    @property
    def seed(self) -> int | None:
        """The seed of training or of a control's draw; None where nothing is drawn."""
        if self.config.trains:
            return self.config.seed
        return self.config.operator.seed if self.arm.drawn else None

    def settings(self) -> dict[str, Any]:
        """All that can change its result, but for the seed: equal in runs that are repetitions."""
        values = self.config.identity()
        values.pop("seed", None)
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
        run = self.config
        options = {**run.model.load_options(), "revision": None}
        if run.method == "wemask":
            options.pop("revision")
            return load(self.final, **options)
        if not run.trains:
            model, tokenizer, _ = load_base(run)
        elif (self.final / "adapter_config.json").exists():
            model, tokenizer = self._load_adapter()
        else:
            model = load_model(str(self.final), **options)
            tokenizer = load_tokenizer(str(self.final))
        if self.operator is not None:
            report = detect_run(run, model, tokenizer)
            soften(model, report, self.operator)
        return model, tokenizer

    def _load_adapter(self) -> tuple[nn.Module, Any]:
        from peft import PeftModel

        base, _, _ = load_base(self.config)
        model = PeftModel.from_pretrained(base, str(self.final)).eval()  # pyright: ignore
        return model, load_tokenizer(str(self.final))
