"""The result of detection, typed and versioned: what `me_layer.json` holds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wemask.detection.typed import typed
from wemask.detection.version_1 import of_version_1
from wemask.errors import DetectionError, nearest
from wemask.files import read_json

SCHEMA_VERSION = 2
LONGEST_PROBE = 65_536  # tokens; detection writes one of its texts, of some hundred
ALIVE_SHARE = 0.25  # below this share of its peak a massive activation is gone
MIN_SEPARATION = 1.2  # below it there is no threshold worth the name


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """When an activation counts as massive.

    `sun2024`: |h| > min_magnitude and >= min_ratio * median (arXiv 2402.17762: 100 and 1000).
    `relative`: |h| >= min_ratio * median; for small models, whose activations never reach 100.
    Either is an emergence where it is min_jump times the layer before: growth is none.
    """

    name: str = "sun2024"
    min_magnitude: float = None  # pyright: ignore[reportAssignmentType]  (set in __post_init__)
    """Smallest |h|; default 100 (sun2024), 0 (relative)."""
    min_ratio: float = None  # pyright: ignore[reportAssignmentType]
    """Smallest |h| / median; default 1000 (sun2024), 100 (relative)."""
    min_jump: float = None  # pyright: ignore[reportAssignmentType]
    """Smallest ratio to the same token's largest |h| a layer before; default 5."""

    def __post_init__(self) -> None:
        defaults = {"sun2024": (100.0, 1000.0, 5.0), "relative": (0.0, 100.0, 5.0)}
        if self.name not in defaults:
            raise DetectionError(
                f"criterion is one of {', '.join(defaults)}; got {self.name!r}."
                + nearest(self.name, defaults)
            )
        names = ("min_magnitude", "min_ratio", "min_jump")
        for key, default in zip(names, defaults[self.name], strict=True):
            value = getattr(self, key)
            if value is None:
                object.__setattr__(self, key, default)
            elif type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise DetectionError(f"{key} must be a number >= 0, got {value!r}.")

    def is_massive(self, values: Tensor, median: float | Tensor) -> Tensor:
        """bool of the shape of `values` (|h|), given the median of its layer."""
        return (values > self.min_magnitude) & (values >= self.min_ratio * median) & (values > 0)

    def level(self, median: float) -> float:
        """The |h| from which on a value is massive, given the median of its layer."""
        return max(self.min_magnitude, self.min_ratio * median)

    def describe(self) -> str:
        """The thresholds in words."""
        parts = [f"at least {self.min_ratio:g} times the median"]
        if self.min_magnitude:
            parts.insert(0, f"above {self.min_magnitude:g}")
        if self.min_jump:
            parts.append(f"{self.min_jump:g} times the layer before")
        return " and ".join(parts)


@dataclass(frozen=True, kw_only=True)
class MassiveToken:
    """One massive token of the calibration texts."""

    text: int
    position: int
    token_id: int
    string: str
    magnitude: float
    """Largest |h| at the output of the ME Layer."""


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One line of the per-layer table; `layer` -1 is the embedding output."""

    layer: int
    max: float
    median: float
    ratio: float
    jump: float | None
    """Largest |h| over that of the layer before."""
    text: int
    position: int
    token: str
    dim: int
    top_dims: list[int]
    cosine_next: float | None
    """Cosine of the strongest token's state to its state one layer later."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How massive tokens are told from ordinary ones where they enter one layer."""

    dims: list[int]
    """Leading dims of the massive tokens there, strongest first."""
    thresholds: dict[int, float] = field(default_factory=dict)
    """tau_d: a token with |h[l-1,t,d]| > tau_d in any of these dims is massive at layer l; empty
    where `note` says why massive tokens cannot be told."""
    primary: dict[int, float] = field(default_factory=dict)
    """The same for `tokens=primary`: between the tokens that the ME Layer makes massive and all
    weaker ones. Empty where they cannot be told."""
    separation: float | None = None
    """Smallest massive over largest ordinary value; None where nothing ordinary was seen."""
    primary_separation: float | None = None
    massive: int = 0
    """Calibration tokens above the thresholds,"""
    ordinary: int = 0
    """and below them."""
    note: str = ""
    """Why there are no thresholds, where there are none."""
    primary_note: str = ""
    """The same for `primary`."""

    def of(self, tokens: str) -> dict[int, float]:
        """The thresholds of a choice of `WeMaskConfig.tokens`."""
        return self.primary if tokens == "primary" else self.thresholds

    def why_not(self, tokens: str) -> str:
        """Why it has no thresholds for a choice of `WeMaskConfig.tokens`; "" where it has."""
        if self.of(tokens):
            return ""
        return (self.primary_note if tokens == "primary" else self.note) or "no thresholds"

    def units(self, residual: Tensor, tokens: str = "massive") -> Tensor:
        """The largest |h| of states [..., D] over the thresholds of `tokens`; massive above 1."""
        taus = self.of(tokens)
        columns = residual[..., list(taus)].float().abs()
        return (columns / torch.tensor(list(taus.values()), device=columns.device)).amax(-1)


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """Massive activations that are born at one layer."""

    layer: int
    tokens: list[MassiveToken]
    """Those that are born there, strongest first, each string once."""
    count: int
    """How many calibration tokens are born there."""
    dims: list[int]
    """In which they pass the criterion, strongest first."""
    magnitude: float
    """Largest |h| at the output of `layer`."""
    erased_at: int | None
    """First later layer whose output has lost them; None where they last to the end."""
    alignment: float | None
    """Cosine of the strongest one's state to that of the ME Layer's, each where it is born; None in
    reports of version 0.1."""

    def describe(self) -> str:
        """One line."""
        if not self.tokens:  # of version 0.1, which kept the layer only
            return f"layer {self.layer}"
        shown = ", ".join(repr(token.string) for token in self.tokens[:4])
        more = " ..." if len(self.tokens) > 4 else ""
        life = "to the end" if self.erased_at is None else f"until layer {self.erased_at}"
        cosine = "" if self.alignment is None else f", cosine {self.alignment:.2f}"
        dims, size = ", ".join(map(str, self.dims)), plain_size(self.magnitude)
        return (
            f"layer {self.layer}: {self.count} tokens ({shown}{more}), up to {size} in dims "
            f"{dims}, {life}{cosine}"
        )


@dataclass(kw_only=True)
class MELayerReport:
    """Where massive activations are born, in which tokens and dims, and how to tell them."""

    model: dict[str, Any]
    """name, revision, dtype, architecture."""
    num_layers: int
    hidden_size: int
    criterion: Criterion
    found: bool = False
    layer: int | None = None
    """The ME Layer, 0-based; None where there is none."""
    dims: list[int] = field(default_factory=list)
    """Massive dims, strongest first."""
    magnitudes: list[float] = field(default_factory=list)
    """Largest |h| of a massive token in each of `dims`, at the ME Layer's output."""
    tokens: list[MassiveToken] = field(default_factory=list)
    emergences: list[Emergence] = field(default_factory=list)
    """All layers where massive activations are born, in order: the ME Layer's and others."""
    erased_at: int | None = None
    """First later layer whose output has lost them; None where they last to the end."""
    gates: dict[int, Gate] = field(default_factory=dict)
    """For each layer after the ME Layer, by its number: how massive tokens are told there."""
    written_by: dict[str, float] | None = None
    """Share of the ME Layer's write in the largest dim that `attention` and `ffn` did."""
    norm: dict[str, Any] | None = None
    """How the ME Layer's pre-FFN norm weighs the massive dims."""
    nearest_miss: str | None = None
    other_criterion: str = ""
    layers: list[LayerRow] = field(default_factory=list)
    probe_ids: list[int] = field(default_factory=list)
    """Token ids of a calibration text that shows a massive token."""
    relief: Tensor | None = field(default=None, repr=False, compare=False)
    """|h| of the strongest token, [layers + 1, D], row 0 the embedding output; not in the file."""

    @property
    def verdict(self) -> str:
        """The answer in one or two sentences."""
        if not self.found:
            return f"No ME Layer: no massive activation emerges. {self.nearest_miss or ''}".strip()
        by_magnitude = sorted(self.tokens, key=lambda t: -t.magnitude)
        tokens = list(dict.fromkeys(f"{t.string!r}" for t in by_magnitude))  # each once, in order
        shown = ", ".join(tokens[:4]) + (" ..." if len(tokens) > 4 else "")
        sizes = map(plain_size, self.magnitudes)
        dims = ", ".join(f"{d} ({m})" for d, m in zip(self.dims, sizes, strict=True))
        others = [str(e.layer) for e in self.emergences if e.layer != self.layer]
        more = f" Others emerge at layers {', '.join(others)}." if others else ""
        end = f" and is erased at layer {self.erased_at}" if self.erased_at is not None else ""
        return (
            f"ME Layer {self.layer}: a massive activation emerges there on {shown}, dims {dims}"
            f"{end}.{more}"
        )

    @property
    def others(self) -> str:
        """The emergences that are not the ME Layer's, a clause each; "" where there are none."""
        return "; ".join(e.describe() for e in self.emergences if e.layer != self.layer)

    @property
    def told(self) -> str:
        """In which layers massive tokens can be told by content, and how clearly."""
        if (clearest := self.clearest_gate()) is None:
            return f"in no layer: {self.why_not_told()}"
        layers = [layer for layer, gate in self.gates.items() if gate.thresholds]
        ratios = [r for layer in layers if (r := self.gates[layer].separation) is not None]
        by = f", most clearly in layer {clearest[0]}"
        if ratios:
            ends = dict.fromkeys(f"{ratio:.3g}" for ratio in (min(ratios), max(ratios)))
            by = (
                f", where the smallest massive value is {' to '.join(ends)} times the largest "
                "ordinary one"
            )
        alone = {layer: gate.note for layer, gate in self.gates.items() if not gate.thresholds}
        left = f"; not in {layers_by_reason(alone)}" if alone else ""
        return f"in layers {ranges(layers)}{by}{left}"

    def clearest_gate(self, tokens: str = "massive") -> tuple[int, Gate] | None:
        """The layer where `tokens` are told best, and its gate; None where they never are."""
        name = "primary_separation" if tokens == "primary" else "separation"

        def ratio(told: tuple[int, Gate]) -> float:
            found = getattr(told[1], name)
            return math.inf if found is None else found  # nothing ordinary was seen

        told = [(layer, gate) for layer, gate in self.gates.items() if gate.of(tokens)]
        return max(told, key=ratio, default=None)

    def why_not_told(self) -> str:
        """Why massive tokens can be told by content in no layer."""
        reasons = [f"layer {layer}: {gate.note}" for layer, gate in self.gates.items() if gate.note]
        return "; ".join(reasons[:3]) or "no layer comes after the ME Layer"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the relief."""
        values = asdict(replace(self, relief=None))
        del values["relief"]
        for row in values["layers"]:  # JSON has no infinity: a ratio to a median of 0 is null
            row |= {k: None for k, v in row.items() if type(v) is float and not math.isfinite(v)}
        for gate in values["gates"].values():
            gate |= {name: _texts(gate[name]) for name in ("thresholds", "primary")}
        values["gates"] = _texts(values["gates"])
        return {"schema_version": SCHEMA_VERSION, "verdict": self.verdict, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MELayerReport":
        """Read what `to_dict` wrote; a report of version 0.1 as what it meant.

        Raises:
            DetectionError: another schema version, wrong keys, or gates that cannot be.
        """
        version = values.get("schema_version") if isinstance(values, Mapping) else None
        if type(version) is not int or version not in (1, SCHEMA_VERSION):
            raise DetectionError(
                f"An ME Layer report of schema version 1 or {SCHEMA_VERSION} was expected, found "
                f"{version!r}. Run `wemask detect` again."
            )
        body = {k: v for k, v in values.items() if k not in ("schema_version", "verdict")}
        try:
            body = of_version_1(body) if version == 1 else body
            needed = ("criterion", "tokens", "emergences", "gates", "layers")
            if missing := [name for name in needed if name not in body]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            infinite = dict.fromkeys(("max", "median", "ratio"), math.inf)
            body["layers"] = [
                {k: infinite.get(k) if v is None else v for k, v in row.items()}
                for row in body["layers"]
            ]
            report = typed(body, cls, "report")
            report._check_gates()
            report._check()
            return report
        except DetectionError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DetectionError(
                f"The ME Layer report is damaged ({error}). Run `wemask detect` again."
            ) from error

    def _check(self) -> None:
        """Raise ValueError where values of the right types do not go together."""
        checks = {
            "layer is no layer": not self.found or self.layer in range(self.num_layers),
            f"dims are not different ones of {self.hidden_size}": are_dims(
                self.dims, self.hidden_size
            ),
            "dims are none": not self.found or len(self.dims) > 0,
            "magnitudes are not one for each of dims": len(self.magnitudes) == len(self.dims),
            "probe_ids are no tokens": min(self.probe_ids, default=0) >= 0,
            "probe_ids are one token alone": len(self.probe_ids) != 1,
            f"probe_ids are more than {LONGEST_PROBE:,}": len(self.probe_ids) <= LONGEST_PROBE,
        }
        if wrong := [what for what, good in checks.items() if not good]:
            raise ValueError("its " + ", its ".join(wrong))

    def _check_gates(self) -> None:
        first, last = (self.layer or 0) + 1, self.num_layers - 1
        for layer, gate in self.gates.items():
            where = f"gates of layer {layer}"
            if not first <= layer <= last:
                raise ValueError(f"{where}: there may be gates of {first} to {last}")
            for dim in [*gate.dims, *gate.thresholds, *gate.primary]:
                if not 0 <= dim < self.hidden_size:
                    raise ValueError(f"{where}: dim {dim} of a width of {self.hidden_size}")
            for tau in [*gate.thresholds.values(), *gate.primary.values()]:
                if not (math.isfinite(tau) and tau > 0):
                    raise ValueError(f"{where}: a threshold must be a number > 0, got {tau!r}")
            for r in (gate.separation, gate.primary_separation):
                if r is not None and not (math.isfinite(r) and r >= 0):
                    raise ValueError(f"{where}: a separation must be a number or null, got {r!r}")

    def save(self, path: str | Path) -> None:
        """Write `me_layer.json`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "MELayerReport":
        """Read `me_layer.json`; DetectionError: no such file, no JSON, or not a report."""
        try:
            values = read_json(Path(path), DetectionError, kind=None)
        except DetectionError as error:
            raise DetectionError(
                f"An ME Layer report was sought at {path}: {error} Run `wemask detect`."
            ) from error
        return cls.from_dict(values)


def are_dims(dims: Sequence[int], size: int) -> bool:
    """Whether these are different dims of a width."""
    return len({*dims}) == len(dims) and all(0 <= dim < size for dim in dims)


def plain_size(magnitude: float) -> str:
    """Four digits, and no power of ten: 24700, 194.9, 0.6415."""
    return f"{magnitude:.4g}" if magnitude < 1000 else f"{magnitude:.0f}"


def layers_by_reason(alone: Mapping[int, str]) -> str:
    """Layers that are left alone, by the reason."""
    layers: dict[str, list[int]] = {}
    for layer, why in alone.items():
        layers.setdefault(why, []).append(layer)
    return "; ".join(f"layer {ranges(numbers)} ({why})" for why, numbers in layers.items())


def ranges(numbers: Sequence[int]) -> str:
    """3 to 9, 12."""
    by_run = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    parts = [[number for _, number in run] for _, run in by_run]
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _texts(numbered: Mapping[int, Any]) -> dict[str, Any]:
    """With the keys of JSON."""
    return {str(number): value for number, value in numbered.items()}
