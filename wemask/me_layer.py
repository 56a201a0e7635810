"""The result of detection, typed and versioned: what `me_layer.json` holds."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from wemask.errors import DetectionError, nearest

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """When an activation counts as massive.

    `sun2024`: |h| > min_magnitude and >= min_ratio * median (arXiv 2402.17762: 100 and 1000).
    `relative`: |h| >= min_ratio * median, and min_jump times the layer before; for small models,
    whose activations never reach 100.
    """

    name: str = "sun2024"
    min_magnitude: float = None  # pyright: ignore[reportAssignmentType]  (set in __post_init__)
    """Smallest |h|; default 100 (sun2024), 0 (relative)."""
    min_ratio: float = None  # pyright: ignore[reportAssignmentType]
    """Smallest |h| / median; default 1000 (sun2024), 100 (relative)."""
    min_jump: float = None  # pyright: ignore[reportAssignmentType]
    """Smallest ratio to the same token's largest |h| a layer before; default 0 and 5."""

    def __post_init__(self) -> None:
        defaults = {"sun2024": (100.0, 1000.0, 0.0), "relative": (0.0, 100.0, 5.0)}
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

    def is_massive(self, values: Tensor, median: float) -> Tensor:
        """bool of the shape of `values` (|h|), given the median of its layer."""
        return (values > self.min_magnitude) & (values >= self.min_ratio * median) & (values > 0)

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
    emergences: list[int] = field(default_factory=list)
    """All layers where massive activations are born; more than one in Qwen2.5-7B."""
    erased_at: int | None = None
    """First later layer whose output has lost them; None where they last to the end."""
    separation: float | None = None
    """Smallest massive over largest ordinary value, over all layers where they live."""
    separation_note: str = ""
    """Why there are no thresholds, where there are none."""
    thresholds: dict[int, float] = field(default_factory=dict)
    """tau_d: a token with |h[l-1,t,d]| > tau_d in any of these dims is massive at layer l."""
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
        dims = ", ".join(f"{d} ({m:.4g})" for d, m in zip(self.dims, self.magnitudes, strict=True))
        more = f" More emerge at layers {self.emergences[1:]}." if self.emergences[1:] else ""
        end = f" and is erased at layer {self.erased_at}" if self.erased_at is not None else ""
        return (
            f"ME Layer {self.layer}: a massive activation emerges there on {shown}, dims {dims}"
            f"{end}.{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the relief."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "relief"}
        values["criterion"] = asdict(self.criterion)
        values["tokens"] = [asdict(t) for t in self.tokens]
        values["layers"] = [_finite(asdict(row)) for row in self.layers]
        values["thresholds"] = {str(d): t for d, t in self.thresholds.items()}
        return {"schema_version": SCHEMA_VERSION, "verdict": self.verdict, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MELayerReport":
        """Read what `to_dict` wrote.

        Raises:
            DetectionError: another schema version, or keys missing or unknown.
        """
        version = values.get("schema_version") if isinstance(values, Mapping) else None
        if version != SCHEMA_VERSION:
            raise DetectionError(
                f"An ME Layer report of schema version {SCHEMA_VERSION} was expected, found "
                f"{version!r}. Run `wemask detect` again."
            )
        body = {k: v for k, v in values.items() if k not in ("schema_version", "verdict")}
        try:
            body["criterion"] = Criterion(**body["criterion"])
            body["tokens"] = [MassiveToken(**t) for t in body["tokens"]]
            rows = [{**row, "ratio": _number(row["ratio"])} for row in body["layers"]]
            body["layers"] = [LayerRow(**row) for row in rows]
            body["thresholds"] = {int(d): float(t) for d, t in body["thresholds"].items()}
            return cls(**body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DetectionError(
                f"The ME Layer report is damaged ({error}). Run `wemask detect` again."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write `me_layer.json`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "MELayerReport":
        """Read `me_layer.json`.

        Raises:
            DetectionError: no such file, no JSON, or not a report.
        """
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DetectionError(
                f"An ME Layer report was sought at {path}: {error}. Run `wemask detect`."
            ) from error
        return cls.from_dict(values)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a ratio to a median of 0 is written as null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _number(value: float | None) -> float:
    return math.inf if value is None else value
