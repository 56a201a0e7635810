"""What each arm is: its method, its operator, and what it is compared with.

An arm is a way to answer the question of an experiment: the model as it is, softened, fine-tuned,
fine-tuned softened. A control is the same with an operator that should not work as well, at the
same budget; an A/A arm is another arm once more, and should differ from it in nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from wemask.settings.composition import conf_dir

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


ARMS: dict[str, Arm] = {
    "base": Arm(method="base"),
    "base_again": Arm(method="base", reference="base", again=True),
    "training_free": Arm(method="training_free", reference="base"),
    "sft": Arm(method="sft"),
    "wemask_sft": Arm(method="wemask", reference="sft"),
    "sft_then_wemask": Arm(method="sft", reference="sft", softened_after=True),
    **{
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
    },
    # no control, which should do less, but a variant
    "primary_tokens": Arm(
        method="training_free", reference="base", changes=control_changes("primary_tokens")
    ),
    "primary_tokens_sft": Arm(
        method="wemask", reference="sft", changes=control_changes("primary_tokens")
    ),
}
