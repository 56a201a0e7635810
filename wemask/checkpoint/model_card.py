"""The README.md of an exported model: what was softened, how it loads, where it comes from."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from wemask.checkpoint.manifest import Manifest
from wemask.operator.settings import LearnableStrength, WeMaskConfig

_TEXT = """# {title}

This {kind} model runs with **WeMask** (weight-guided masking, arXiv 2605.08504) on: {what}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_NAME", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_NAME", trust_remote_code=True)
model.wemask_handle.remove()  # if you want to see it without the softening
```

Without `trust_remote_code=True` it does not load, because the softening would be lost. The code is
in the `wemask_*.py` files of this folder. Where wemask is installed, `wemask.load(FOLDER)` does the
same without running code from this folder.

| | |
|---|---|
| base model | {base} |
| ME Layer (where massive activations are born) | {me_layer} |
| softened layers (from 0) | {layers} |
| tokens | {tokens} |
| dims | {dims} |
| rate (share of dims) | {rate} |
| site | {site} |
| softened dims go towards | {fill} |
| strength s | {strength} |

All settings are in `wemask_config.json`.
"""


_OPERATOR = """in the softened
layers, the attention input `x` of a massive token is multiplied by `1 - s` on a few dims, and
nothing else is changed"""
_CONTROL = """with settings
that make it a control, something to compare the real operator with"""


def _is_control(config: WeMaskConfig) -> bool:
    """Whether a choice is one of the controls in `WeMaskConfig`."""
    controls = ("before_me", "wrong", "random", "lowest", "uniform", "residual_stream", "mean")
    choices = (config.layers, config.tokens, config.dims, config.site, config.fill)
    return any(choice in controls for choice in choices)


def write_card(folder: Path, saved: Manifest, kind: str) -> None:
    """Write `folder`/README.md with the metadata of the hub."""
    config = saved.config
    hub_name = saved.base_model if _is_hub_name(saved.base_model) else None
    data = ModelCardData(
        base_model=hub_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["wemask", "massive-activations", "custom_code"],
    )
    revision = f" (revision {saved.base_revision})" if saved.base_revision else ""
    text = _TEXT.format(
        title=f"{saved.base_model or kind}, softened",
        kind=kind,
        base=f"{saved.base_model or 'not named'}{revision}",
        me_layer="not detected" if saved.report is None else saved.report.layer,
        layers=", ".join(map(str, saved.layers)),
        tokens=config.tokens,
        dims=f"{config.dims}: {_dims(saved)}",
        rate=config.rate,
        site=config.site,
        fill=config.fill,
        what=_CONTROL if _is_control(config) else _OPERATOR,
        strength=_strength(saved),
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _dims(saved: Manifest) -> str:
    if saved.dims is None:
        return "chosen anew in each forward"
    different = {tuple(dims) for dims in saved.dims.values()}
    if len(different) > 1:
        return "by layer, see wemask_config.json"
    (dims,) = different
    shown = ", ".join(map(str, dims[:16]))
    return f"{shown}, ... ({len(dims)})" if len(dims) > 16 else shown


def _strength(saved: Manifest) -> str:
    learned = isinstance(saved.config.strength, LearnableStrength) and saved.learned
    return f"{saved.strength:g}" + (" (learned; the mean over the layers)" if learned else "")
