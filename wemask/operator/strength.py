"""s of the equation: a number, a schedule over training steps, or learned with the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wemask.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class StrengthSchedule:
    """Strength that moves linearly during training from `start` to `end` within `steps` steps."""

    start: float = 0.0
    end: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        problems = [
            strength_problem("strength.start", self.start),
            strength_problem("strength.end", self.end),
        ]
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            problems.append(f"strength.steps must be a whole number >= 1, got {self.steps!r}.")
        if any(problems):
            raise ConfigError("\n".join(filter(None, problems)))

    def at(self, step: int) -> float:
        """Strength after `step` optimizer steps; `end` from `steps` on."""
        return self.start + (self.end - self.start) * min(1.0, max(0.0, step / self.steps))


@dataclass(frozen=True, kw_only=True)
class LearnableStrength:
    """One trained number theta per softened layer: s = sigmoid(scale * theta).

    An optimizer such as Adam moves theta by about the learning rate in a step, which for a
    fine-tuning rate of 2e-5 would leave s where it began; `scale` makes it move.
    """

    initial: float = 0.9
    """s before training, between 0 and 1: at 0 and at 1 a sigmoid has no gradient."""
    scale: float = 100.0

    def __post_init__(self) -> None:
        if not (is_number(self.initial) and 0 < self.initial < 1):
            raise ConfigError(
                f"strength.initial must be between 0 and 1, both excluded, got {self.initial!r}: a "
                "learnable strength cannot leave 0 or 1 (type strength=1.0 for a fixed one)."
            )
        if not (is_number(self.scale) and self.scale > 0):
            raise ConfigError(f"strength.scale must be a number > 0, got {self.scale!r}.")

    def theta(self) -> float:
        """The parameter at which s is `initial`."""
        return math.log(self.initial / (1 - self.initial)) / self.scale


def is_number(value: object) -> bool:
    """True for a finite number; False for True."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def check_strength(value: float) -> float:
    """Return `value` if it can be s of the equation.

    Raises:
        ConfigError: it is no number from 0 to 1.
    """
    if problem := strength_problem("strength", value):
        raise ConfigError(problem)
    return value


def strength_problem(name: str, value: object) -> str | None:
    """What is wrong with a setting that must be s of the equation; None: nothing."""
    if is_number(value) and 0 <= value <= 1:  # pyright: ignore[reportOperatorIssue]
        return None
    return f"{name} must be a number from 0 to 1, got {value!r}."


def strength_settings(values: Mapping[str, Any]) -> StrengthSchedule | LearnableStrength:
    """A schedule or a learnable strength, told apart by their keys."""
    kinds = (StrengthSchedule, LearnableStrength)
    known = {kind: [f.name for f in fields(kind)] for kind in kinds}
    names = [name for of_kind in known.values() for name in of_kind]
    if unknown := [key for key in values if key not in names]:
        said = f"strength.{unknown[0]} does not exist; there are {', '.join(names)}."
        raise ConfigError(said + nearest(unknown[0], names))
    for kind in kinds:
        if all(key in known[kind] for key in values):
            return kind(**values)
    raise ConfigError(
        f"strength mixes a schedule ({', '.join(known[StrengthSchedule])}) and a learnable "
        f"strength ({', '.join(known[LearnableStrength])}): {dict(values)}. Give one of them."
    )
