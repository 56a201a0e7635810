"""The operator beside the weights: save a softened model, load it back with the softening on.

A folder holds what save_pretrained writes, plus `wemask_config.json`. Stock `from_pretrained` must
not drop the operator silently, so three things stand in its way, each an error it already has:
`model_type` becomes `wemask_<type>`, weights get the file variant `wemask`, and an adapter's
`peft_type` becomes `WEMASK_<type>`. safetensors only.
"""

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from wemask.architectures import unwrap
from wemask.errors import ModelError, PatchError, WemaskError
from wemask.loading import keep_deepspeed_out, load_model, load_tokenizer
from wemask.me_layer import MELayerReport
from wemask.operator import WeMaskConfig, check_strength
from wemask.patch import SoftenHandle, soften

CONFIG_NAME = "wemask_config.json"
SCHEMA_VERSION = 1
VARIANT = "wemask"
PREFIX = "wemask_"


def save(model: nn.Module, tokenizer: Any, folder: str | Path) -> None:
    """Save a softened model, or a PEFT adapter of one, with its operator.

    Args:
        model: softened by `wemask.soften`; a PEFT model saves its adapter only.
        tokenizer: saved beside it; may be None.
        folder: created if need be.

    Raises:
        PatchError: the model is not softened (then `model.save_pretrained` is what you want).
    """
    keep_deepspeed_out()
    folder = Path(folder)
    if folder.is_file():
        raise ModelError(f"{folder} is a file; a folder is needed to save a model.")
    handle = _handle(model)
    peft = hasattr(model, "peft_config")
    # A PEFT model has no variants; its `peft_type` is what stops a stock loader.
    options = {} if peft else {"variant": VARIANT}
    model.save_pretrained(folder, **options)  # pyright: ignore[reportCallIssue]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    mark(folder, handle)


def mark(folder: Path, handle: SoftenHandle) -> None:
    """Make a folder that save_pretrained wrote a softened one: its operator, and the stops."""
    values = _describe(handle)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    _rename(folder / "config.json", "model_type", PREFIX)
    _rename(folder / "adapter_config.json", "peft_type", PREFIX.upper())


def _rename(path: Path, key: str, prefix: str) -> None:
    if not path.exists():
        return
    values = json.loads(path.read_text())
    if not values[key].startswith(prefix):
        values[key] = prefix + values[key]
        path.write_text(json.dumps(values, indent=2) + "\n")


def _handle(model: nn.Module) -> SoftenHandle:
    handle = getattr(unwrap(model), "wemask_handle", None)
    if handle is None:
        raise PatchError(
            "The model is not softened, so there is no operator to save. Call wemask.soften first, "
            "or model.save_pretrained for the plain model."
        )
    return handle


def _describe(handle: SoftenHandle) -> dict[str, Any]:
    config = handle._model.config
    return {
        "schema_version": SCHEMA_VERSION,
        "wemask_version": _version("wemask"),
        "transformers_version": _version("transformers"),
        "base_model": getattr(config, "_name_or_path", ""),
        "base_revision": getattr(config, "_commit_hash", None),
        "operator": handle.config.to_dict(),
        "strength": handle.strength,
        "layers": handle.layers,
        # The dims themselves: training moves norm weights, and re-choosing could find others.
        "dims": {str(i): dims for i, dims in handle.dims.items()},
        "report": None if handle.report is None else handle.report.to_dict(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def load(folder: str | Path, **options: Any) -> tuple[nn.Module, Any]:
    """Load what `save` wrote: (model with the softening on, tokenizer or None).

    The handle is at `model.wemask_handle` (of the base model, for an adapter).

    Args:
        folder: a folder with wemask_config.json.
        **options: as for `wemask.loading.load_model`: dtype, device_map, trust_remote_code, ...

    Raises:
        ModelError: no wemask_config.json, a damaged or newer one, or weights that do not load.
        DetectionError, PatchError: the operator does not fit this model.
    """
    folder = Path(folder)
    values = read_config(folder)
    saved = _parse(folder / CONFIG_NAME, values)
    if (folder / "adapter_config.json").exists():
        model = _load_adapter(folder, values, options)
    else:
        model = _load_full(folder, options)
    try:
        handle = soften(model, saved.report, saved.config, dims=saved.dims)
    except WemaskError as error:
        raise type(error)(f"{folder / CONFIG_NAME} does not fit this model. {error}") from error
    handle.set_strength(saved.strength)
    if not (folder / "tokenizer_config.json").exists():
        return model, None
    return model, load_tokenizer(str(folder), config=unwrap(model).config)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check wemask_config.json.

    Raises:
        ModelError: missing, not JSON, of a newer version, or with keys missing.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise ModelError(
            f"{path} was sought and not found: {folder} holds no softened model. A plain model "
            "loads with transformers, or model.path=FOLDER on our command lines."
        )
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(
            f"{path} is damaged ({error}). Restore it, or save the model again."
        ) from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is damaged (no JSON object). Restore it, or save again.")
    required = ("schema_version", "operator", "strength", "layers", "dims", "report")
    if missing := [key for key in required if key not in values]:
        raise ModelError(f"{path} lacks {', '.join(missing)}. Save the model again.")
    if values["schema_version"] != SCHEMA_VERSION:
        raise ModelError(
            f"{path} is of schema version {values['schema_version']}, this wemask reads up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install -U wemask."
        )
    return values


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What wemask_config.json says."""

    report: MELayerReport | None
    config: WeMaskConfig
    dims: dict[int, list[int]] | None  # None where each forward chooses its own
    strength: float


def _parse(path: Path, values: dict[str, Any]) -> _Saved:
    """Read before the weights are: a damaged file should not cost minutes of loading."""
    try:
        dims = {int(i): d for i, d in values["dims"].items()}
        return _Saved(
            report=None if values["report"] is None else MELayerReport.from_dict(values["report"]),
            config=WeMaskConfig.from_dict(values["operator"]),
            dims=None if None in dims.values() else dims,
            strength=check_strength(values["strength"]),
        )
    except (AttributeError, TypeError, ValueError) as error:  # our own errors are ValueErrors
        raise ModelError(
            f"{path} is damaged: {error} Restore it, or save the model again."
        ) from error


def _load_full(folder: Path, options: dict[str, Any]) -> nn.Module:
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if not values["model_type"].startswith(PREFIX):
            raise ModelError(
                f"{path} is of a plain model ({values['model_type']}), but {CONFIG_NAME} lies "
                "beside it: plain weights were saved over a softened model. Save again with "
                "wemask.save."
            )
        kind = values["model_type"].removeprefix(PREFIX)
        if kind not in CONFIG_MAPPING and not options.get("trust_remote_code"):
            raise ModelError(f"{path}: model_type {kind!r} is unknown to this transformers.")
        values["model_type"] = kind
        config = CONFIG_MAPPING[kind].from_dict(values)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} cannot be read: {error!r}.") from error
    has_variant = any(folder.glob(f"*.{VARIANT}.safetensors")) or any(
        folder.glob(f"*.index.{VARIANT}.json")
    )
    variant = VARIANT if has_variant else None  # a training checkpoint has none
    return load_model(str(folder), config=config, variant=variant, **options)


def _load_adapter(folder: Path, values: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    from peft import PeftConfig, PeftModel

    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["peft_type"] = settings["peft_type"].removeprefix(PREFIX.upper())
    base_name = values.get("base_model") or settings.get("base_model_name_or_path")
    if not base_name:
        raise ModelError(
            f"{folder} is an adapter of a model that was built in memory, with no name or folder. "
            "Save the merged model: model.merge_and_unload(), then wemask.save."
        )
    base = load_model(base_name, revision=values.get("base_revision"), **options)
    config = PeftConfig.from_peft_type(**settings)
    return PeftModel.from_pretrained(base, str(folder), config=config).eval()  # pyright: ignore
