"""The operator beside the weights: save a softened model, load it back with the softening on.

A folder holds what save_pretrained writes, plus `wemask_config.json` (`manifest.py`). Stock
`from_pretrained` must not drop the operator silently, so three things stand in its way, each an
error it already has: `model_type` becomes `wemask_<type>`, weights get the file variant `wemask`,
and an adapter's `peft_type` becomes `WEMASK_<type>`. safetensors only.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wemask.checkpoint.adapter import is_adapter, read_adapter, with_adapter
from wemask.checkpoint.fingerprint import same_weights, sample_weights
from wemask.checkpoint.manifest import (
    CONFIG_NAME,
    PREFIX,
    VARIANT,
    Manifest,
    handle_of,
    manifest_values,
    mark,
    read_config,
    read_manifest,
    restore,
    write_marks,
)
from wemask.checkpoint.model_folder import as_path, check_folder
from wemask.checkpoint.pretrained import keep_deepspeed_out, load_model, load_tokenizer
from wemask.checkpoint.vocabulary import fit_vocabulary, widen
from wemask.decoder.parts import unwrap
from wemask.errors import ModelError, judged_by
from wemask.files import kind_of, read_json, saving

__all__ = ["CONFIG_NAME", "is_adapter", "load", "mark", "merge", "read_config", "save"]


def save(
    model: nn.Module,
    tokenizer: Any,
    folder: str | Path,
    *,
    max_shard_size: int | str | None = None,
    state_dict: dict[str, Any] | None = None,
    write: bool = True,
) -> None:
    """Save a softened model, or a PEFT adapter of one, with its operator.

    Where ZeRO-3 or FSDP2 shard it, call this on every rank.

    Args:
        model: softened by `wemask.soften`; a PEFT model saves its adapter only.
        tokenizer: saved beside it; may be None.
        folder: created if need be.
        max_shard_size: largest weight file, as for transformers: `5GB`; None = its default.
        state_dict: the weights, where they are not the model's own tensors (gathered ones, which a
            forward may free: what the probe prompt shows must have been seen before, by
            `handle.look`).
        write: false on all ranks but the first.

    Raises:
        PatchError: the model is not softened (then `model.save_pretrained` is what you want).
        ModelError: `folder` is a file, or the weights cannot be written as they are: on the meta
            device, or quantised in a way that has no file format; or `tokenizer` is none.
        RunFolderError: the folder cannot be written.
    """
    keep_deepspeed_out()
    folder = as_path(folder)
    if kind_of(folder) == "file":
        raise ModelError(f"{folder} is a file; a folder is needed to save a model.")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ModelError(f"A tokenizer was sought, got {tokenizer!r:.80}. Type None for none.")
    handle = handle_of(model)
    peft = hasattr(model, "peft_config")
    _check_saveable(unwrap(model), whole=not peft)
    # A PEFT model has no variants; its `peft_type` is what stops a stock loader.
    options: dict[str, Any] = {} if peft else {"variant": VARIANT}
    if max_shard_size is not None and not peft:
        options["max_shard_size"] = max_shard_size
    if state_dict is not None:
        options["state_dict"] = state_dict
    values = manifest_values(handle, model if state_dict is None else None)
    if not write:
        return
    with saving(folder):
        model.save_pretrained(folder, **options)  # pyright: ignore[reportCallIssue]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_marks(folder, values)


def _check_saveable(base: nn.Module, *, whole: bool) -> None:
    if all(p.is_meta for p in base.parameters()):
        raise ModelError(
            "The model is on the meta device: it has no weights to save. Load the weights first."
        )
    quantiser = getattr(base, "hf_quantizer", None)
    if whole and quantiser is not None and not quantiser.is_serializable():
        method = quantiser.quantization_config.quant_method
        raise ModelError(
            f"The model is quantised with {getattr(method, 'value', method)}, whose weights cannot "
            "be saved. Train and save an adapter (peft=lora), or load the model unquantised."
        )


def load(
    folder: str | Path,
    *,
    check_base: bool = True,
    resize: bool = False,
    may_touch_nothing: bool = False,
    **options: Any,
) -> tuple[nn.Module, Any]:
    """Load what `save` or `export` wrote: (model with the softening on, tokenizer or None).

    The handle is at `model.wemask_handle` (of the base model, for an adapter).

    Args:
        folder: a folder with wemask_config.json.
        check_base: refuse weights that are not those beside which the operator was saved.
        resize: add rows to the embedding where the tokenizer has more tokens, instead of refusing.
        may_touch_nothing: load a softening that touches nothing, also where that was not known when
            it was saved, e.g. to calibrate it again.
        **options: as for `pretrained.load_model`: dtype, device_map, revision (of an adapter's
            base model), ...

    Raises:
        ModelError: no wemask_config.json, a damaged or newer one, weights that do not load,
            another base model than the operator was calibrated on, or another's tokenizer.
        DetectionError, PatchError: the operator does not fit this model.
    """
    folder = as_path(folder)
    saved = read_manifest(folder)  # before the weights: a damaged file should not cost minutes
    load_weights = _load_adapter if is_adapter(folder) else _load_full
    model = load_weights(folder, saved, check_base, {"parts": saved.parts, **options})
    _check_finite(model, folder)
    restore(model, saved, may_touch_nothing=may_touch_nothing)
    if not (folder / "tokenizer_config.json").exists():
        return model, None
    tokenizer = load_tokenizer(str(folder), config=unwrap(model).config)
    fit_vocabulary(model, tokenizer, str(folder), resize=resize)
    return model, tokenizer


def _check_finite(model: nn.Module, folder: Path) -> None:
    for name, weight in model.named_parameters():
        plain = weight.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        if plain and not weight.is_meta and not weight.isfinite().all():
            raise ModelError(
                f"The weights of {folder} are not all numbers, in {name}: the file is damaged, or "
                "the training diverged. Restore it, or train with a lower learning rate."
            )


def merge(folder: str | Path, out: str | Path, **options: Any) -> None:
    """Merge a softened adapter into its base model and save both as one softened model.

    Args:
        folder: an adapter that `save` wrote.
        out: folder for the whole model.
        **options: as for `load`.

    Raises:
        ModelError: no softened adapter, `out` is taken, or a quantised base model, into which
            nothing can be merged without rounding.
        WemaskError: it does not load.
    """
    folder, out = as_path(folder), as_path(out)
    check_free(out)
    read_config(folder)
    if not is_adapter(folder):
        raise ModelError(f"{folder} is no adapter but a whole model: there is nothing to merge.")
    model, tokenizer = load(folder, **options)
    if getattr(unwrap(model), "hf_quantizer", None) is not None:
        raise ModelError(
            "The base model is quantised: merging would round the adapter away. Merge into the "
            "unquantised base model."
        )
    with new_folder(out) as partial:
        save(model.merge_and_unload(), tokenizer, partial)  # pyright: ignore[reportCallIssue]


def check_free(out: Path) -> None:
    """Raise ModelError unless `out` can become a new folder."""
    if kind_of(out) == "file":
        raise ModelError(f"{out} is a file; a folder is needed to save a model.")
    if kind_of(out) == "folder" and any(out.iterdir()):
        raise ModelError(f"{out} is not empty. Give a new folder, or remove it first: rm -r {out}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes `out` at the end, unless something went wrong."""
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
            partial = Path(name) / out.name
            partial.mkdir()
            yield partial
            partial.rename(out)


def variant_of(folder: Path) -> str | None:
    """That of its weight files; a training checkpoint has none."""
    return VARIANT if any(folder.glob(f"*.{VARIANT}*.safetensors")) else None


def _load_full(
    folder: Path, saved: Manifest, check_base: bool, options: dict[str, Any]
) -> nn.Module:
    variant = variant_of(folder)
    check_folder(str(folder), folder, variant)
    model = load_model(str(folder), config=_native_config(folder), variant=variant, **options)
    if check_base and not _same(model, saved):
        raise ModelError(
            f"{saved.path} was not saved beside these weights: some were kept in it, and the "
            "weights of this folder have others. Copy both from one place, or detect and soften "
            "anew; wemask.load(..., check_base=False) loads it as it is."
        )
    return model


def _native_config(folder: Path) -> Any:
    """The config without our model_type, nor the code of an export."""
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    values = read_json(path, ModelError)
    kind = str(values.pop("model_type", "none"))
    if not kind.startswith(PREFIX):
        raise ModelError(
            f"{path} is of a plain model ({kind}), but {CONFIG_NAME} lies beside it: plain "
            "weights were saved over a softened model. Save again with wemask.save."
        )
    kind = kind.removeprefix(PREFIX)
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{path}: model_type {kind!r} is unknown to this transformers.")
    values.pop("auto_map", None)
    with judged_by("transformers", ModelError, f"{path} (restore it)"):
        return CONFIG_MAPPING[kind].from_dict(values)


def _load_adapter(
    folder: Path, saved: Manifest, check_base: bool, options: dict[str, Any]
) -> nn.Module:
    settings = read_adapter(folder)
    settings["peft_type"] = str(settings.get("peft_type")).removeprefix(PREFIX.upper())
    name = saved.base_model or settings.get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"{folder} is an adapter of a model that was built in memory, with no name or folder. "
            "Save the merged model: model.merge_and_unload(), then wemask.save."
        )
    base = load_model(name, **{"revision": saved.base_revision, **options})
    widen(base, saved.vocabulary)
    if check_base:
        _check_base(base, name, saved)
    return with_adapter(base, folder, settings)


def _check_base(base: nn.Module, name: str, saved: Manifest) -> None:
    """Raise ModelError where the base model is not the one that was adapted and softened."""
    wanted, found = saved.base_revision, getattr(base.config, "_commit_hash", None)
    other_commit = wanted is not None and found is not None and wanted != found
    if not other_commit and _same(base, saved):
        return
    difference = (
        f"revision {wanted} of it, found revision {found}"
        if other_commit
        else "other weights than are there now (some of them were kept, and differ)"
    )
    raise ModelError(
        f"{saved.path}: the operator was calibrated on {name}, on {difference}. Restore that base "
        "model, or detect and soften anew on this one (`wemask detect`); wemask.load(..., "
        "check_base=False) loads it as it is."
    )


def _same(model: nn.Module, saved: Manifest) -> bool:
    try:
        return same_weights(saved.weights_sample, sample_weights(model))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{saved.path} is damaged: {error} Save the model again.") from error
