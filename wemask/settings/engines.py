"""Training engines as settings: DeepSpeed ZeRO and FSDP2; neither of them is plain DDP.

`train/engine_check.py` looks at what really runs.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from wemask.errors import ConfigError, nearest

PASSED_ON = ("deepspeed", "fsdp", "fsdp_config")  # fields of SFTConfig that say which engine
# What transformers 5.23 reads of fsdp_config; it ignores others without a word.
FSDP_FIELDS = (
    *("version", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params"),
    *("reshard_after_forward", "cpu_offload", "cpu_ram_efficient_loading", "state_dict_type"),
    *("activation_checkpointing",),
)


def deepspeed_settings(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `deepspeed` section: None, or the preset's name and DeepSpeed's own fields.

    Raises:
        ConfigError: no preset was chosen, its stage is none, or DeepSpeed is not installed.
    """
    if not chosen("deepspeed", values, "zero3"):
        return None
    zero = values.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"deepspeed.zero_optimization.stage is 0, 1, 2 or 3; got {stage!r}. Choose a preset, "
            "such as deepspeed=zero3."
        )
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"deepspeed={values['name']} needs DeepSpeed, which is not installed. Type pip install "
            "'wemask[deepspeed]', or fsdp=full_shard, which needs nothing more."
        )
    return dict(values)


def fsdp_settings(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `fsdp` section: None, or the preset's name and the fields of fsdp_config.

    Raises:
        ConfigError: no preset was chosen, an unknown field, or FSDP1.
    """
    if not chosen("fsdp", values, "full_shard"):
        return None
    if unknown := [key for key in values if key not in ("name", *FSDP_FIELDS)]:
        raise ConfigError(
            f"There is no setting 'fsdp.{unknown[0]}': there are {', '.join(FSDP_FIELDS)}."
            + nearest(unknown[0], FSDP_FIELDS)
        )
    if values.get("version", 2) != 2:
        raise ConfigError(
            f"fsdp.version={values['version']} is deprecated in transformers; leave it at 2."
        )
    return dict(values)


def chosen(group: str, values: Mapping[str, Any], example: str) -> bool:
    """Whether an option other than `none` was chosen; ConfigError: `none` was given settings."""
    others = [key for key in values if key != "name"]
    if values.get("name") == "none" and others:
        raise ConfigError(
            f"{group}=none has no settings; found {', '.join(others)}: {group}={example}?"
        )
    return values.get("name") != "none"


def check_one_engine(
    deepspeed: Mapping[str, Any] | None, fsdp: Mapping[str, Any] | None, trainer: Mapping[str, Any]
) -> None:
    """Raise ConfigError where more than one engine is asked for."""
    asked = [f"{k}={v['name']}" for k, v in (("deepspeed", deepspeed), ("fsdp", fsdp)) if v]
    asked += [f"trainer.{key}" for key in ("deepspeed", "fsdp") if trainer.get(key)]
    if len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(asked)} are {len(asked)} engines: one can train. Leave the others out."
        )


def engine_arguments(
    deepspeed: Mapping[str, Any] | None, fsdp: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Fields of SFTConfig for what was chosen."""
    fields = {key: value for key, value in (deepspeed or fsdp or {}).items() if key != "name"}
    if deepspeed:
        return {"deepspeed": fields}
    return {"fsdp": True, "fsdp_config": fields} if fsdp else {}
