"""Load a model and its tokenizer, with errors that say what to do. Nothing is ever unpickled."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wemask.checkpoint import gguf_file
from wemask.checkpoint.model_folder import check_folder, check_texts
from wemask.checkpoint.vocabulary import fit_vocabulary
from wemask.data.templates import settle
from wemask.distributed import world
from wemask.errors import ModelError
from wemask.files import kind_of, read_json, shown
from wemask.settings import packaged
from wemask.settings.config import ModelConfig

TINY = "tiny"


def keep_deepspeed_out() -> None:
    """Stop accelerate from importing deepspeed (seconds, and a build) to unwrap any model at all.

    It does so wherever deepspeed is installed, to ask if the model is a DeepSpeedEngine. It can
    only be one where deepspeed is imported already, so that is asked instead.
    """
    import accelerate.utils.other as accelerate_other

    accelerate_other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def resolve_path(name: str) -> str:
    """The folder of the embedded model for `tiny`, the file of a package, else `name` itself.

    Raises:
        ModelError: the package is not there, or not what was meant.
    """
    if name.startswith(packaged.PREFIX):
        return str(packaged.packaged_file(name))
    if name != TINY:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    from wemask.embedded import TINY_PATH

    return str(TINY_PATH)


def located(name: str) -> tuple[str, dict[str, str]]:
    """Where a model is: a file, a folder or ORG/NAME, and the option that a GGUF file needs.

    Raises:
        ModelError: a file that is not there or cannot be loaded, or see `resolve_path`.
    """
    if not isinstance(name, str):
        raise ModelError(f"A model is named by a text, got {name!r:.80}: ORG/NAME or 'FOLDER'.")
    path = resolve_path(name)
    if kind_of(path) == "file":
        gguf_file.check(name, Path(path))
        return path, {"gguf_file": str(Path(path).absolute())}  # "x.gguf" alone would be a hub id
    if path.endswith(".gguf") and not kind_of(path):
        raise ModelError(
            f"The file {path} does not exist. One of the hub is downloaded first: "
            "hf download ORG/NAME FILE.gguf"
        )
    return path, {}


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    parts: dict[str, str] | None = None,
    variant: str | None = None,
    config: Any = None,
) -> nn.Module:
    """Load a causal language model: `tiny`, a folder, a GGUF file, or ORG/NAME of the hub.

    A GGUF file is dequantised: what comes back is a plain model, and is saved as one.

    Args:
        name: what to load; also `package:...` (`packaged.py`).
        revision: hub branch, tag or commit.
        dtype: `auto` (as saved; of a GGUF file float32), `float32`, `bfloat16` or `float16`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None = transformers' choice.
        device_map: as in transformers; None = one GPU if there is one, else the CPU.
        trust_remote_code: run code that the repository ships. Off unless asked for.
        parts: names of architecture parts (`model.wemask_parts`), where they are not recognised.
        variant: weight file variant.
        config: a transformers config instead of the one in the folder.

    Raises:
        ModelError: no such model, no weights, damaged weights, or an unknown architecture.
    """
    keep_deepspeed_out()
    path, of_gguf = located(name)
    if not of_gguf and _is_there(path):
        if config is None and _model_type(Path(path)).startswith("wemask_"):
            raise ModelError(_is_softened(name))
        check_folder(name, Path(path), variant)
    from transformers import AutoModelForCausalLM, GgufConfig

    options: dict[str, Any] = {
        "revision": revision or "main",
        "dtype": _dtype("float32" if of_gguf and dtype == "auto" else dtype),
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,  # a .bin is a pickle: it can run code when it is opened
        "output_loading_info": True,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "variant": variant,
        "config": config,
        "quantization_config": GgufConfig(dequantize=True) if of_gguf else None,
        **of_gguf,
    }
    options = {key: value for key, value in options.items() if value is not None}
    model, info = _explained(AutoModelForCausalLM.from_pretrained, name, path, options)
    if not of_gguf:  # of a GGUF file the settings are kept, though it was dequantised
        _check_quantised(name, model)
    if missing := sorted(info["missing_keys"]):  # transformers draws them at random and logs it
        raise ModelError(
            f"{name} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}, ...), "
            "a shard perhaps. They would be random: restore the files, or give another folder."
        )
    if device_map is None and torch.cuda.is_available() and world() == 1:
        model = model.to("cuda")
    if parts:
        model.wemask_parts = dict(parts)
    if of_gguf:
        model.name_or_path = ""  # PEFT would ask the hub for the config.json of that name
    if path != name or of_gguf:
        model.config._name_or_path = name  # "tiny", not this machine's folder
    return model.eval()


def load_both(model: ModelConfig) -> tuple[nn.Module, Any]:
    """The model of these settings and its tokenizer; raises as the two that load them do."""
    loaded = load_model(model.path, **model.load_options())
    tokenizer = load_tokenizer(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    fit_vocabulary(loaded, tokenizer, model.path, resize=model.resize)
    return loaded, tokenizer


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, config: Any = None
) -> Any:
    """Load the tokenizer of `name`; a missing pad token becomes the end-of-text token.

    Names and options as for `load_model`; `config`: the model's, where the one in the folder is not
    for stock loaders.

    Raises:
        ModelError: there is none, or its chat template cannot be used (`wemask.data.templates`).
    """
    from transformers import AutoTokenizer

    path, of_gguf = located(name)
    if not of_gguf and _is_there(path):
        check_texts(Path(path))
    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code, **of_gguf}
    options |= {} if config is None else {"config": config}
    tokenizer = _explained(AutoTokenizer.from_pretrained, name, path, options)
    if of_gguf:
        tokenizer.name_or_path = name
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    settle(tokenizer)
    return tokenizer


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if dtype != "auto" and not isinstance(found, torch.dtype):
        raise ModelError(f"dtype is auto, float32, bfloat16 or float16; got {dtype!r}.")
    return "auto" if dtype == "auto" or found is None else found


def _check_quantised(name: str, model: nn.Module) -> None:
    """Refuse weights whose quantisation transformers does not know: it reads them as they lie."""
    settings: Any = getattr(model.config, "quantization_config", None)
    if settings and getattr(model, "hf_quantizer", None) is None:
        kind = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise ModelError(
            f"{name} is quantised by {kind!r}, a kind that this transformers does not know; it "
            "would read the weights as plain numbers. Give the model unquantised."
        )


def _is_there(path: str) -> bool:
    """Whether it is a folder here (else a name of the hub); ModelError: neither."""
    if kind_of(path):
        return True
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(
            f"The model folder {shown(path)} does not exist. Give a folder or ORG/NAME."
        )
    return False


def _explained(load: Any, name: str, path: str, options: dict[str, Any]) -> Any:
    """Call a from_pretrained; what it raises becomes one sentence."""
    try:
        if "gguf_file" not in options:
            return load(path, **options)
        # Whatever lies beside the file (tokenizer_config.json, adapter_config.json) would be read.
        with tempfile.TemporaryDirectory() as empty:
            return load(empty, **options)
    except Exception as error:  # of a damaged folder these libraries raise anything
        # wemask.load gives the config; pointing to itself would explain nothing.
        raise ModelError(_explain(name, path, error, "config" in options)) from error


def _explain(name: str, path: str, error: Exception, ours: bool) -> str:
    said = " ".join(str(error).split())
    if found := kind_of(path):
        kind = "gguf" if found == "file" else _model_type(Path(path))
        adapter = said.strip("'").startswith("WEMASK_")  # a peft_type that PEFT does not know
        if (kind.startswith("wemask_") or adapter) and not ours:
            return _is_softened(name)
        said = said[:400] or repr(error)
        return f"{name} cannot be loaded (model_type {kind or 'unknown'}): {said}"
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached or refuses"
    return (
        f"{shown(name)} is not in the local cache and {reason}. Check the name, unset "
        "HF_HUB_OFFLINE, log in with `hf auth login` if the model is gated, or give a local "
        f"folder: model.path=FOLDER. (The hub client said: {said[:200]})"
    )


def _is_softened(name: str) -> str:
    return (
        f"{name} is a softened model. Load it with wemask.load({name!r}); to look at it as a plain "
        f"model: wemask export {name} PLAIN --plain, and --model PLAIN."
    )


def _model_type(folder: Path) -> str:
    try:
        return str(read_json(folder / "config.json", ModelError).get("model_type", ""))
    except ModelError:
        return ""
