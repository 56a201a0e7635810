"""What is softened, where and how much: the settings of the operator, checked as they are made.

The equation is in `equation.py`; its s is a number, a schedule over training steps, or learned with
the model. Controls are choices of the same settings, and differ from the real thing in one of them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wemask.errors import ConfigError, nearest

LAYERS = ("after_me", "from_me", "next", "before_me")
TOKENS = ("massive", "primary", "first", "position0", "wrong")
DIMS = (
    *("me_norm", "batch_activation", "attn_norm", "activation", "massive"),
    *("random", "lowest", "uniform"),  # controls
)
SITES = ("attention_input", "residual_copy", "residual_stream")
FILLS = ("zero", "mean")
LARGEST_SCALE = 1e9  # theta is float32: beyond it, scale * theta is no number any more
RECALIBRATE = ("never", "at_end")


@dataclass(frozen=True, kw_only=True)
class StrengthSchedule:
    """Strength that moves linearly during training from `start` to `end` within `steps` steps."""

    start: float = 0.0
    end: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        problems = [*_strength_problem("strength.start", self.start)]
        problems += _strength_problem("strength.end", self.end)
        if type(self.steps) is not int or self.steps < 1:
            problems.append(f"strength.steps must be a whole number >= 1, got {self.steps!r}.")
        if problems:
            raise ConfigError("\n".join(problems))

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
        if not (is_number(self.scale) and 0 < self.scale <= LARGEST_SCALE):
            sought = f"a number > 0, at most {LARGEST_SCALE:g}"
            raise ConfigError(f"strength.scale must be {sought}, got {self.scale!r}.")

    def theta(self) -> float:
        """The parameter at which s is `initial`."""
        return math.log(self.initial / (1 - self.initial)) / self.scale


@dataclass(frozen=True, kw_only=True)
class WeMaskConfig:
    """What is softened, where, and how much. Six choices and a budget; none is implied.

    Raises:
        ConfigError: every problem of the given values, together.
    """

    rate: float = 0.001
    """Share of the D dims that are softened: k = max(1, round(rate * D)); 0 < rate <= 1."""
    layers: str | tuple[int, ...] = "after_me"
    """after_me (every l > L) | from_me (l >= L) | next (L + 1) | before_me (control) | [7, 8]."""
    tokens: str = "massive"
    """massive (by content, in each layer by its own gate) | primary (of these, only those that the
    ME Layer makes, not weaker ones that are born later) | first (first real token of each document)
    | position0 (index 0) | wrong: a control, one ordinary token of each document, that at place 1 +
    `seed` (the first is at place 0). A document that is shorter, or has a massive token there, is
    left alone."""
    dims: str = "me_norm"
    """me_norm | batch_activation | attn_norm | activation | massive. `massive` is all dims that
    lead in the layer (its gate's), whatever the rate. Controls: random | lowest (of me_norm) |
    uniform (all D dims by one factor, so that a token keeps the norm that me_norm's dims at this
    strength would leave)."""
    site: str = "attention_input"
    """attention_input (after the norm) | residual_copy (before it; the residual stays whole) |
    residual_stream: a control, the residual that enters the layer is itself changed, for attention,
    FFN and all later layers. Where that removes the massive activation, later layers find none."""
    fill: str = "zero"
    """What softened dims go towards: zero, as in the equation, | mean: x * (1 - s * m) + s * m * v,
    a control. v is the mean of a dim over the tokens that are softened on the probe prompt, taken
    once, without softening, and saved. With site=residual_stream: set-zero and set-mean of Sun et
    al. (arXiv 2402.17762)."""
    strength: float | str | StrengthSchedule | LearnableStrength = 1.0
    """s in the equation: 1.0 removes the dims, 0.0 is the identity; or a schedule {start, end,
    steps}; or `learnable` (short for {initial: 0.9, scale: 100}), trained with the model."""
    seed: int = 0
    """Of `dims=random`; 1 + seed is the place of the token of `tokens=wrong`."""
    recalibrate: str | int = "at_end"
    """When training calibrates the gates again, on the weights as they are then: at_end | never | a
    number n, every n optimizer steps and at the end. Layers, dims and fill stay as chosen."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):  # lists come from YAML and JSON; stored as a tuple
            object.__setattr__(self, "layers", tuple(self.layers))
        problems = [*self._problems(), *self._clashes(), *self._strength_problems()]
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            problems.append(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}.")
        if self.recalibrate not in RECALIBRATE and not self.recalibrate_every:
            problems.append(
                f"recalibrate is one of {', '.join(RECALIBRATE)}, or a number of steps >= 1; got "
                f"{self.recalibrate!r}.{nearest(str(self.recalibrate), RECALIBRATE)}"
            )
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            yield f"rate is the share of dims to soften, 0 < rate <= 1, got {self.rate!r}."
        layers = self.layers
        if isinstance(layers, str):
            yield from _unknown("layers", layers, LAYERS, " or a list of layers such as [7, 8]")
        elif (
            not (isinstance(layers, tuple) and layers)
            or not all(type(i) is int and i >= 0 for i in layers)
            or len(set(layers)) < len(layers)
        ):
            yield (
                f"layers is one of {', '.join(LAYERS)} or a list of different layer numbers, "
                f"0-based, such as [7, 8]; got {layers!r}."
            )
        for name, options in (("tokens", TOKENS), ("dims", DIMS), ("site", SITES), ("fill", FILLS)):
            yield from _unknown(name, getattr(self, name), options)

    def _clashes(self) -> Iterator[str]:
        """Choices that do not go together."""
        if self.by_content and self.layers in ("from_me", "before_me"):
            # A token is massive at layer l when the residual that ENTERS l is: at and before the
            # ME Layer that is never so, and the softening would silently touch nothing.
            yield (
                f"layers={self.layers} with tokens={self.tokens} would touch nothing: no token is "
                "massive yet where it enters the ME Layer. Type tokens=first."
            )
        if self.dims == "uniform" and self.site != "attention_input":
            yield (
                f"dims=uniform with site={self.site} would do nothing: the norm that reads the "
                "residual undoes a factor common to all dims. Type site=attention_input."
            )
        if self.fill == "mean" and self.dims in ("uniform", "batch_activation"):
            yield (
                f"fill=mean needs the same few dims in every forward, dims={self.dims} has none. "
                "Type dims=massive, or fill=zero."
            )

    def _strength_problems(self) -> Iterator[str]:
        """Also makes a schedule or a learnable strength of plain values."""
        try:
            if isinstance(self.strength, Mapping):
                object.__setattr__(self, "strength", _strength_settings(self.strength))
            elif self.strength == "learnable":
                object.__setattr__(self, "strength", LearnableStrength())
        except ConfigError as error:
            yield str(error)
            return
        if isinstance(self.strength, str):
            yield f"strength must be a number from 0 to 1, or learnable; got {self.strength!r}."
        elif not isinstance(self.strength, (StrengthSchedule, LearnableStrength)):
            yield from _strength_problem("strength", self.strength)

    @property
    def explicit_layers(self) -> tuple[int, ...] | None:
        """The layers when they are given by number, else None."""
        return self.layers if isinstance(self.layers, tuple) else None

    @property
    def needs_report(self) -> bool:
        """True when some choice can only be resolved with a detected ME Layer."""
        by_report = self.dims in ("me_norm", "activation", "massive", "lowest", "uniform")
        return self.explicit_layers is None or self.by_content or by_report

    @property
    def by_content(self) -> bool:
        """True where the tokens are those that a layer's gate picks."""
        return self.tokens in ("massive", "primary")

    @property
    def uses_gates(self) -> bool:
        """True where a layer's gate says which tokens are softened, or which are not."""
        return self.by_content or self.tokens == "wrong"

    @property
    def recalibrate_every(self) -> int | None:
        """Steps from one calibration to the next in training; None: at the end or never."""
        n = self.recalibrate
        return n if type(n) is int and n >= 1 else None

    @property
    def position(self) -> int | None:
        """Place in its document of the token that is softened; None where content or index say."""
        return {"first": 0, "wrong": 1 + self.seed}.get(self.tokens)

    @property
    def final_strength(self) -> float:
        """The strength of evaluation: that of the end of a schedule, the start of a learnable."""
        if isinstance(self.strength, StrengthSchedule):
            return self.strength.end
        if isinstance(self.strength, LearnableStrength):
            return self.strength.initial
        return float(self.strength)

    def budget(self, hidden_size: int) -> int:
        """Number k of dims that are softened in a model of width `hidden_size`.

        `batch_activation` counts as the authors' file does, int(rate * D).

        Raises:
            ConfigError: that count is 0, so nothing would be softened.
        """
        if self.dims != "batch_activation":
            return max(1, round(self.rate * hidden_size))
        k = int(self.rate * hidden_size)
        if k == 0:
            raise ConfigError(
                f"dims=batch_activation softens int(rate * D) = int({self.rate} * {hidden_size}) "
                f"= 0 dims: nothing. Type rate={1 / hidden_size:.4g} or more."
            )
        return k

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; `from_dict` reads them back.

        `recalibrate` is left out at its default: runs from before it keep their names.
        """
        values = asdict(self)
        if self.recalibrate == "at_end":
            del values["recalibrate"]
        if isinstance(self.layers, tuple):
            values["layers"] = list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WeMaskConfig":
        """Build from plain values.

        Raises:
            ConfigError: an unknown key (the nearest is named) or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(
                "\n".join(
                    f"operator.{key} does not exist; there are {', '.join(known)}."
                    + nearest(key, known)
                    for key in unknown
                )
            )
        return cls(**values)


def _unknown(name: str, value: object, options: tuple[str, ...], more: str = "") -> Iterator[str]:
    if value not in options:
        hint = nearest(str(value), options)
        yield f"{name} is one of {', '.join(options)}{more}; got {value!r}.{hint}"


def is_number(value: object) -> bool:
    """True for a finite number; False for True."""
    return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)


def check_strength(value: float) -> float:
    """Return `value` if it can be s of the equation.

    Raises:
        ConfigError: it is no number from 0 to 1.
    """
    for problem in _strength_problem("strength", value):
        raise ConfigError(problem)
    return value


def _strength_problem(name: str, value: object) -> Iterator[str]:
    if not (is_number(value) and 0 <= value <= 1):  # pyright: ignore[reportOperatorIssue]
        yield f"{name} must be a number from 0 to 1, got {value!r}."


def _strength_settings(values: Mapping[str, Any]) -> StrengthSchedule | LearnableStrength:
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
