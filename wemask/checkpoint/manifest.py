"""`wemask_config.json`: what it says, how it is written, checked, and put back into a model.

It lies beside the weights of every softened model. An exported folder carries a copy of this file
of code and of what it imports (see `export.py`), so it imports no more than the operator needs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from wemask.checkpoint.fingerprint import WeightSample, sample_weights
from wemask.decoder.parts import find_decoder, rows, unwrap
from wemask.detection.me_layer import MELayerReport
from wemask.detection.typed import must
from wemask.errors import ModelError, PatchError, WemaskError
from wemask.files import kind_of, read_json
from wemask.operator.handle import Calibrated, SoftenHandle
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig, check_strength, is_number

CONFIG_NAME = "wemask_config.json"
SCHEMA_VERSION = 2
VARIANT = "wemask"
PREFIX = "wemask_"
STOPS = (  # file, key and prefix: a stock loader stops where it does not know the kind
    ("config.json", "model_type", PREFIX),
    ("adapter_config.json", "peft_type", PREFIX.upper()),
)
_REQUIRED = ("schema_version", "operator", "strength", "layers", "dims", "report")


# --- writing --------------------------------------------------------------------------------------


def mark(folder: Path, handle: SoftenHandle) -> None:
    """Make a folder that save_pretrained wrote a softened one: its operator, and the stops."""
    write_marks(folder, manifest_values(handle, handle.model))


def write_marks(folder: Path, values: dict[str, Any]) -> None:
    """The same for what `manifest_values` said."""
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    for name, key, prefix in STOPS:
        path = folder / name
        if path.exists():
            settings = json.loads(path.read_text())
            settings[key] = prefix + settings[key].removeprefix(prefix)
            path.write_text(json.dumps(settings, indent=2) + "\n")


def handle_of(model: nn.Module) -> SoftenHandle:
    """The handle of a softened model.

    Raises:
        PatchError: it is not softened.
    """
    handle = getattr(unwrap(model), "wemask_handle", None)
    if handle is None:
        raise PatchError(
            "The model is not softened, so there is no operator to save. Call wemask.soften first, "
            "or model.save_pretrained for the plain model."
        )
    return handle


def manifest_values(handle: SoftenHandle, model: nn.Module | None) -> dict[str, Any]:
    """What wemask_config.json says of a softened model; where it is sharded, all ranks must ask.

    Args:
        handle: of the softened model.
        model: that model, or what is wrapped around it, to look what the probe prompt shows; None:
            what was seen last.
    """
    if model is not None:
        handle.look(model)
    config = handle.model.config
    learned = all(softening.strength is None for softening in handle.softenings())
    return {
        "schema_version": SCHEMA_VERSION,
        "wemask_version": _version("wemask"),
        "transformers_version": _version("transformers"),
        "base_model": getattr(config, "_name_or_path", ""),
        "base_revision": getattr(config, "_commit_hash", None),
        "operator": handle.config.to_dict(),
        "strength": handle.strength,
        # none where `set_strength` put a number in its place
        "learned": {str(i): theta for i, theta in handle.learned.items()} if learned else {},
        "layers": handle.layers,
        # The dims themselves: training moves norm weights, and re-choosing could find others.
        "dims": {str(i): dims for i, dims in handle.dims.items()},
        "budget": max((len(dims or ()) for dims in handle.dims.values()), default=0),
        "fill": {str(i): values for i, values in handle.fill.items()},
        "parts": getattr(handle.model, "wemask_parts", {}),
        "vocabulary": rows(handle.model),
        "weights_sample": sample_weights(handle.model),
        # After training they may be none: a finding, and no fault of whoever loads it.
        "tokens_touched": {str(i): n for i, n in handle.tokens_touched.items()},
        "touched_first": {str(i): n for i, n in handle.touched_first.items()},
        "report": None if handle.report is None else handle.report.to_dict(),
        "calibrated": _calibrated_values(handle.calibrated),
    }


def _calibrated_values(calibrated: Calibrated | None) -> dict[str, Any] | None:
    if calibrated is None:
        return None
    reports = {"first": calibrated.first.to_dict(), "found": calibrated.found.to_dict()}
    return {"step": calibrated.step, **reports}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What wemask_config.json says, checked."""

    path: Path
    config: WeMaskConfig
    strength: float
    learned: dict[int, float]
    """Raw parameter of a learnable strength per layer; empty where it was a number."""
    layers: list[int]
    dims: dict[int, list[int]] | None  # None where each forward chooses its own
    budget: int
    """Most dims of a layer; 0 in a file of version 0.1, where the rate says it."""
    fill: dict[int, list[float]]  # what the dims go towards; empty where that is zero
    report: MELayerReport | None
    """With the gates that were in force."""
    calibrated: Calibrated | None
    """Where these gates come from, if not from the first detection."""
    tokens_touched: dict[int, int] | None
    """Per layer on the probe prompt, when it was saved; None: an older version saved it."""
    touched_first: dict[int, int]
    """The same before training; empty where that is not known."""
    base_model: str
    base_revision: str | None
    parts: dict[str, Any]
    """`model.wemask_parts`: names of architecture parts that are not recognised."""
    vocabulary: int
    """Rows of the embedding; 0 in a file of version 0.1."""
    weights_sample: WeightSample | None
    """None where the weights could not be read when it was written (sharded, quantised)."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read wemask_config.json: its JSON, version and keys.

    Raises:
        ModelError: missing, not JSON, of a newer version, or with keys missing.
    """
    path = folder / CONFIG_NAME
    if not kind_of(path):
        raise ModelError(
            f"{path} was sought and not found: {folder} holds no softened model. A plain model "
            "loads with transformers, or model.path=FOLDER on our command lines."
        )
    try:
        values = read_json(path, ModelError)
    except ModelError as error:
        raise ModelError(
            f"{error} The file is damaged: restore it, or save the model again."
        ) from error
    if missing := [key for key in _REQUIRED if key not in values]:
        raise ModelError(f"{path} lacks {', '.join(missing)}. Save the model again.")
    version = values["schema_version"]
    if type(version) is not int or version not in (1, SCHEMA_VERSION):  # 1: no gates
        raise ModelError(
            f"{path} is of schema version {version}, this wemask reads up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install -U wemask."
        )
    return values


def read_manifest(folder: Path) -> Manifest:
    """Read wemask_config.json and check every value of it that needs no weights.

    Raises:
        ModelError: what `read_config` raises, or a value of the wrong type or range.
    """
    values, path = read_config(folder), folder / CONFIG_NAME
    try:
        report = None if values["report"] is None else MELayerReport.from_dict(values["report"])
        config = WeMaskConfig.from_dict(_object("operator", values))
        dims, fill = values["dims"], values.get("fill", {})
        open_dims = bool(dims) and all(of_layer is None for of_layer in dims.values())
        if open_dims and config.dims != "batch_activation":  # its forwards choose them
            raise ValueError(f"dims={config.dims}, but dims of no layer.")
        if bool(fill) != (config.fill == "mean"):
            raise ValueError(f"fill={config.fill}, but fill values of {len(fill)} layers.")
        return Manifest(
            path=path,
            config=config,
            strength=check_strength(values["strength"]),
            learned={
                int(i): must(is_number(theta), f"learned of layer {i}", "a number", theta)
                for i, theta in values.get("learned", {}).items()
            },
            layers=_indices("layers", values["layers"]),
            dims=None
            if open_dims
            else {int(i): _indices(f"dims of layer {i}", d) for i, d in dims.items()},
            budget=_indices("budget", [values.get("budget", 0)])[0],
            fill={
                int(i): must(_are_numbers(v), f"fill of layer {i}", "a list of numbers", v)
                for i, v in fill.items()
            },
            report=report,
            calibrated=_calibrated(values.get("calibrated")),
            tokens_touched=_counts(values, "tokens_touched"),
            touched_first=_counts(values, "touched_first") or {},
            base_model=_text("base_model", values),
            base_revision=_text("base_revision", values) or None,
            parts=_object("parts", {"parts": {}, **values}),
            vocabulary=_indices("vocabulary", [values.get("vocabulary", 0)])[0],
            weights_sample=values.get("weights_sample"),
        )
    except (AttributeError, TypeError, ValueError) as error:  # our own errors are ValueErrors
        raise ModelError(
            f"{path} is damaged: {error} Restore it, or save the model again."
        ) from error


def _calibrated(values: Any) -> Calibrated | None:
    if values is None:
        return None
    named = {*values} >= {"step", "first", "found"}
    must(named, "calibrated", "an object of step, first and found", [*values])
    step, first, found = values["step"], values["first"], values["found"]
    _indices("calibrated.step", [] if step is None else [step])
    reports = {"first": MELayerReport.from_dict(first), "found": MELayerReport.from_dict(found)}
    return Calibrated(step=step, **reports)


def _counts(values: Mapping[str, Any], name: str) -> dict[int, int] | None:
    counts = values.get(name)
    if counts is None:
        return None
    _indices(name, [*counts.values()])
    return {int(i): n for i, n in counts.items()}


def _object(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return must(isinstance(values[name], dict), name, "an object", values[name])


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number, values))


def _indices(name: str, values: Any) -> list[int]:
    good = isinstance(values, list) and all(type(i) is int and i >= 0 for i in values)
    return must(good, name, "a list of whole numbers >= 0", values)


def _text(name: str, values: Mapping[str, Any]) -> str:
    value = values.get(name) or ""
    return must(isinstance(value, str), name, "a text", value)


def _check_budget(saved: Manifest, width: int) -> None:
    """Raise PatchError where a layer has more dims than it was softened in."""
    if saved.dims is None or (not saved.budget and saved.config.dims == "massive"):
        return
    most = saved.budget or saved.config.budget(width)
    for index, dims in saved.dims.items():
        if len(dims) > most:
            raise PatchError(f"Layer {index} has {len(dims)} dims, where {most} were softened.")


# --- back into a model ----------------------------------------------------------------------------


def restore(model: nn.Module, saved: Manifest, *, may_touch_nothing: bool = False) -> SoftenHandle:
    """Soften `model` as it was when `saved` was written.

    Args:
        model: unsoftened, with the weights that it was saved with.
        saved: what its file says.
        may_touch_nothing: allow it also where `saved` does not know of it.

    Raises:
        WemaskError: the operator does not fit this model; of the kind that `soften` raised.
    """
    base: Any = unwrap(model)
    if saved.parts and not hasattr(base, "wemask_parts"):
        base.wemask_parts = dict(saved.parts)
    try:
        _check_budget(saved, find_decoder(base).hidden_size)
        handle = soften(
            model,
            saved.report,
            saved.config,
            dims=saved.dims,
            fill=saved.fill or None,
            learned=saved.learned or None,
            may_touch_nothing=True,
        )
        handle.calibrated = saved.calibrated
        handle.touched_first = saved.touched_first
        if problem := _problem(handle, saved, may_touch_nothing):
            handle.remove()
            raise PatchError(problem)
    except WemaskError as error:
        raise type(error)(f"{saved.path} does not fit this model. {error}") from error
    if not saved.learned:
        handle.set_strength(saved.strength)
    for softening in handle.softenings():
        softening.requires_grad_(False)  # what was learned is no longer trained
    return handle


def _problem(handle: SoftenHandle, saved: Manifest, may_touch_nothing: bool) -> str | None:
    """Why a restored softening is not the saved one; None: it is."""
    if handle.layers != saved.layers:
        means = f"its operator means {handle.layers}"
        return f"It names the layers {saved.layers}, but {means}. Save again."
    known = saved.tokens_touched is not None and not any(saved.tokens_touched.values())
    if may_touch_nothing or known or any(handle.tokens_touched.values()):
        return None
    return (
        f"The softening touches nothing: none of the layers {saved.layers} sees a token of "
        f"tokens={saved.config.tokens} on the probe prompt. Where training has moved the massive "
        f"activation, type: wemask recalibrate {saved.path.parent}"
    )
