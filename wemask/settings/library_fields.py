"""Fields of SFTConfig and LoraConfig, checked against these classes themselves: their docs apply.

Names, plain types, the choices that a field lists, and ranges. What only the library can judge it
judges while it is set up (`errors.judged_by`).
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wemask.errors import ConfigError, nearest
from wemask.settings import engines

# Fields of SFTConfig whose values below this end in a traceback deep inside torch. Any other number
# is 0 or more, but for those whose own default is not.
LEAST = {
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
ABOVE_0 = ("save_steps", "logging_steps")  # shares below 1 are allowed
NOT_HERE = {
    "output_dir": "is set by wemask itself; see paths",
    "seed": "is set by wemask itself; see seed",
    "resume_from_checkpoint": (
        "is not needed: the same command resumes, from the last whole checkpoint of its run folder "
        "(paths.run_dir names one). To begin with other weights: model.path=FOLDER"
    ),
    "model_init_kwargs": (
        "would do nothing: wemask loads the model. See model.dtype, model.attn_implementation, "
        "model.revision"
    ),
    **{
        f"gradient_checkpointing{end}": f"is called trainer.activation_checkpointing{end} now"
        for end in ("", "_kwargs")
    },
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), "would do nothing: it is for scripts that read it"
    ),
}


def check_finite(values: Any, place: str = "") -> Iterator[str]:
    """One line for each number, however deep, that is NaN, infinite or beyond 64 bits."""
    if isinstance(values, Mapping | list | tuple):
        inner = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in inner:
            yield from check_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(values, float) and not math.isfinite(values):
        yield f"{place} must be a finite number, got {values}."
    elif isinstance(values, int) and abs(values) >= 2**63:
        yield f"{place} must be a number of 64 bits, got one of {values.bit_length()}."


def trainer_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The `trainer` section, as it is.

    Raises:
        ConfigError: every unknown field and every value that makes no sense, together.
    """
    from trl.trainer.sft_config import SFTConfig

    wrong = [f"trainer.{key} {NOT_HERE[key]}." for key in values if _is_not_here(key, values[key])]
    others = {key: value for key, value in values.items() if key not in NOT_HERE}
    wrong += _wrong_fields(SFTConfig, others, "trainer")
    wrong += [*_out_of_range(SFTConfig, others), *_without_effect(others)]
    steps, epochs = (
        others.get(name, getattr(SFTConfig, name)) for name in ("max_steps", "num_train_epochs")
    )
    if not wrong and (steps == 0 or (steps < 0 and epochs <= 0)):
        train = f"trainer.max_steps={steps} and num_train_epochs={epochs} train nothing"
        wrong.append(f"{train}: one of them must be above 0.")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return values


def _is_not_here(key: str, value: Any) -> bool:
    """Null or false says what is so anyway, but of what would be set another way."""
    said = value is not None and value is not False
    return key in NOT_HERE and (said or not key.startswith(("do_", "resume", "model_init")))


def _without_effect(values: dict[str, Any]) -> Iterator[str]:
    """What is given inside a field and read by nobody; torch would hand it to the layers."""
    from torch.utils.checkpoint import checkpoint

    words = inspect.signature(checkpoint).parameters.values()
    own = [word.name for word in words if word.kind is word.KEYWORD_ONLY or "use_" in word.name]
    read = {
        "activation_checkpointing_kwargs": (*own, "every_n_layers", "offload"),
        "dataset_kwargs": ("skip_prepare_dataset",),
    }
    if str(values.get("lr_scheduler_type")) in ("constant", "constant_with_warmup"):
        read["lr_scheduler_kwargs"] = ()
    for field, known in read.items():
        given = values.get(field)
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                there = f" There are {', '.join(known)}." if known else ""
                yield f"trainer.{field}.{key} would do nothing.{nearest(key, known) or there}"


def peft_fields(values: dict[str, Any]) -> dict[str, Any] | None:
    """The `peft` section without its name; None: no adapter.

    Raises:
        ConfigError: as `trainer_fields`.
    """
    if not engines.chosen("peft", values, "lora"):
        return None
    from peft import LoraConfig

    given = {key: value for key, value in values.items() if key != "name"}
    if wrong := _wrong_fields(LoraConfig, given, "peft"):
        raise ConfigError("\n".join(wrong))
    return given


def _wrong_fields(kind: Any, values: dict[str, Any], section: str) -> list[str]:
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    wrong = []
    for key, value in values.items():
        if key not in known:
            wrong.append(
                f"There is no setting '{section}.{key}': {kind.__name__} has no such field."
                + nearest(key, known)
            )
            continue
        hint, choices = known[key].type, known[key].metadata.get("choices", ())
        hint = hint.__name__ if isinstance(hint, type) else str(hint)
        if not _fits(value, hint):
            wrong.append(f"{section}.{key} must be {hint}, got {value!r}.")
        elif choices and value is not None and value not in choices:
            said = f"{section}.{key} is one of {', '.join(choices)}; got {value!r}."
            wrong.append(said + nearest(str(value), choices))
    return wrong


def _fits(value: Any, hint: str) -> bool:
    """Whether a YAML value fits a field of only plain types; others are left to the class."""
    names = set(re.findall(r"\w+", hint)) - {"Optional", "Union", "typing"}
    kind = "None" if value is None else type(value).__name__
    plain = names <= {"int", "float", "bool", "str", "None"}
    return not plain or kind in names or (kind == "int" and "float" in names)


def _out_of_range(kind: Any, values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        default = getattr(kind, key, None)
        free = isinstance(default, int | float) and default < 0
        if type(value) not in (int, float) or free:
            continue
        least = LEAST.get(key, 0)
        if key in ABOVE_0 and value <= 0:
            yield f"trainer.{key} must be above 0, got {value!r}."
        elif value < least:
            yield f"trainer.{key} must be at least {least}, got {value!r}."
