"""The adapter of a run: of its own (LoRA), or the one that its model already is.

`model.path` may be what an earlier LoRA run left. Another LoRA beside it would take its place
without a word; so such a run is refused, or continues it, or begins with what it is merged into.
"""

import copy
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from wemask.checkpoint.adapter import read_adapter, with_adapter
from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.checkpoint.save_load import CONFIG_NAME, is_adapter, load
from wemask.checkpoint.vocabulary import fit_vocabulary
from wemask.decoder.parts import unwrap
from wemask.errors import ConfigError, ModelError, judged_by
from wemask.files import kind_of
from wemask.operator.handle import SoftenHandle
from wemask.settings.config import RunConfig

MERGED = "merged_base"  # in a run folder: what its own adapter belongs to
REGEX_SECONDS = 10


# --- an adapter that is there already -------------------------------------------------------------


def load_adapted(config: RunConfig) -> tuple[nn.Module, Any] | None:
    """The adapter at `model.path` on its base, or merged into it; None: there is none.

    An operator that was saved with it is left out: the run's own settings say what is softened.

    Raises:
        ConfigError: `model.adapter` does not say what to do with it, or contradicts `peft`.
        ModelError: it does not load, or cannot be merged.
    """
    folder = Path(config.model.path).expanduser()
    choice = config.model.adapter
    here = kind_of(folder) == "folder"
    if here and (folder / "config.resolved.yaml").exists():
        raise ModelError(f"{folder} is a run folder. Its model: model.path={folder / 'final'}")
    if not here or not is_adapter(folder):
        if choice != "refuse":
            raise ConfigError(f"model.adapter={choice}, but {folder} is no adapter. Leave it out.")
        return None
    softened = (folder / CONFIG_NAME).exists()
    if choice == "refuse" and not (config.trains or softened):
        return None  # stock weights, to be measured or evaluated as transformers loads them
    _check_choice(config, folder, softened)
    options = {k: v for k, v in config.model.load_options().items() if v and k != "revision"}
    resize = config.model.resize
    if softened:
        model, tokenizer = load(folder, resize=resize, **options)
    else:
        model, tokenizer = _load_stock(folder, options)
        fit_vocabulary(model, tokenizer, str(folder), resize=resize)
    handle: SoftenHandle | None = getattr(unwrap(model), "wemask_handle", None)
    if handle is not None:
        handle.remove()
    if choice == "merge":
        model = _merged(model, config)
    else:
        model.set_adapter(model.active_adapter)  # pyright: ignore[reportCallIssue]: trained again
    return model, tokenizer or load_tokenizer(str(folder))


def _check_choice(config: RunConfig, folder: Path, softened: bool) -> None:
    choice = config.model.adapter
    if choice == "refuse" and not config.trains:
        raise ConfigError(
            f"{folder} is a softened adapter. Type model.adapter=continue to look at it on its "
            "base model, or model.adapter=merge."
        )
    if choice == "refuse":
        raise ConfigError(
            f"{folder} is an adapter, which another training would drop. Type "
            "model.adapter=continue to train it further as it is, or model.adapter=merge to begin "
            "with its base model after merging (peft=lora trains a new adapter of that)."
        )
    if choice == "continue" and config.peft is not None:
        raise ConfigError(
            "model.adapter=continue trains the adapter that is there, of its own rank and targets: "
            "peft=lora would be another one. Leave peft out, or type model.adapter=merge."
        )
    if softened and not config.softens and config.trains:
        raise ConfigError(
            f"{folder} was trained softened; method={config.method} would drop its operator. Type "
            "method=wemask."
        )


def _load_stock(folder: Path, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    settings = read_adapter(folder)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder}/adapter_config.json names no base model.")
    base = load_model(name, revision=revision, **options)
    model = with_adapter(base, folder, settings)
    kept = (folder / "tokenizer_config.json").exists()
    return model, load_tokenizer(str(folder) if kept else name)


def _merged(model: Any, config: RunConfig) -> nn.Module:
    if getattr(unwrap(model), "hf_quantizer", None) is not None:
        raise ModelError(
            "The adapter's base model is quantised: merging would round the adapter away. Type "
            "model.adapter=continue."
        )
    merged = model.merge_and_unload().requires_grad_(True)  # PEFT froze it
    if config.peft is not None:  # a new adapter is loaded beside it: it gets a place of its own
        place = str((config.folder() / MERGED).absolute())
        merged.config._name_or_path = merged.name_or_path = place
    return merged


def save_merged(config: RunConfig, model: Any, tokenizer: Any, folder: Path) -> None:
    """Keep the merged base of a new adapter in its run folder: nothing else holds these weights."""
    if config.model.adapter != "merge" or config.peft is None or (folder / MERGED).exists():
        return
    half = folder / f"{MERGED}.partial"
    model.save_pretrained(half)
    tokenizer.save_pretrained(half)
    half.rename(folder / MERGED)


# --- an adapter of one's own ----------------------------------------------------------------------


def peft_config(config: RunConfig) -> Any:
    """The LoraConfig of a run (ConfigError: PEFT refuses it), or None where there is none."""
    if config.peft is None:
        return None
    from peft import LoraConfig

    if str(begin := config.peft.get("init_lora_weights")).startswith("pissa_niter_"):
        raise ConfigError(
            f"peft.init_lora_weights={begin} takes something out of the base model's weights that "
            "is drawn at random and kept in no file: the adapter would load as another model. Type "
            "peft.init_lora_weights=pissa, which is computed again."
        )
    with judged_by("PEFT"):
        return LoraConfig(**{"task_type": "CAUSAL_LM", **config.peft})


def lora_size(config: RunConfig, model: nn.Module) -> int | None:
    """Parameters of the adapter that is trained; None: the run trains all.

    Counted on a copy of the model without weights.

    Raises:
        ConfigError: PEFT refuses the settings on this model, a name in them matches nothing, or
            no memory could hold it.
    """
    if config.peft is None:
        own = hasattr(model, "peft_config")
        return sum(p.numel() for p in model.parameters() if p.requires_grad) if own else None
    from peft import get_peft_model

    settings = peft_config(config)
    with judged_by("PEFT"):
        _check_names(settings, [name for name, _ in model.named_modules()])
    # The memo puts an empty tensor where deepcopy would copy: no second model in memory.
    tensors = (*model.parameters(), *model.buffers())
    bare = copy.deepcopy(model, {id(t): t.detach().to("meta") for t in tensors})
    settings.init_lora_weights = True  # PiSSA and the like need weights, and add none
    with judged_by("PEFT"), torch.device("meta"):
        peft = get_peft_model(bare, settings)  # pyright: ignore[reportArgumentType]
    size = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    memory = psutil.virtual_memory().total
    if 4 * size > memory:
        raise ConfigError(
            f"LoRA of rank {settings.r} would be {size:,} parameters, {4 * size / 2**30:,.0f} GiB; "
            f"this machine has {memory / 2**30:,.0f} GiB. Give a smaller peft.r."
        )
    return size


def _check_names(settings: Any, names: list[str]) -> None:
    """Raise ConfigError for a name that no module has, which PEFT takes without a word."""
    for field in ("modules_to_save", "target_modules", "exclude_modules"):
        given = getattr(settings, field)
        for name in () if given is None or isinstance(given, str) else sorted(given):
            end = name if field == "modules_to_save" else f".{name}"  # as PEFT looks for them
            if not any(module == name or module.endswith(end) for module in names):
                last = dict.fromkeys(module.rpartition(".")[2] for module in names if module)
                shown = ", ".join(part for part in last if not part.isdigit())
                raise ConfigError(f"peft.{field}: no module is called {name!r}, but {shown}.")
    patterns = [rf"(?:.*\.)?(?:{key})" for key in (*settings.rank_pattern, *settings.alpha_pattern)]
    whole = [p for p in (settings.target_modules, settings.exclude_modules) if isinstance(p, str)]
    with _time_limit(REGEX_SECONDS):
        for pattern in (*patterns, *(p for p in whole if p.lower() != "all-linear")):
            if not any(re.fullmatch(pattern, module) for module in names):
                raise ConfigError(f"peft: no module of this model matches {pattern!r}.")


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """End a match that takes for ever: `re` looks for signals as it goes."""
    if threading.current_thread() is not threading.main_thread():  # signals go nowhere else
        yield
        return

    def stop(*_: Any) -> None:
        raise ConfigError(
            f"A regular expression in peft (target_modules, ...) took more than {seconds} s on the "
            "names of this model's modules. Give a simpler one, or a list of names."
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
