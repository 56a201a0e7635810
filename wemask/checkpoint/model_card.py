"""The README.md of an exported model: what was softened, how it loads, where it comes from."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from wemask.checkpoint.manifest import Manifest
from wemask.operator.settings import LearnableStrength

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


_CONTROLS = {"before_me", "wrong", "random", "lowest", "uniform", "residual_stream", "mean"}
_OPERATOR = """in the softened
layers, the attention input `x` of a massive token is multiplied by `1 - s` on a few dims, and
nothing else is changed"""
_CONTROL = """with settings
that make it a control, something to compare the real operator with"""


def write_card(folder: Path, saved: Manifest, kind: str) -> None:
    """Write `folder`/README.md with the metadata of the hub."""
    config = saved.config
    choices = {config.layers, config.tokens, config.dims, config.site, config.fill}
    name, path_like = saved.base_model, saved.base_model.startswith((".", "/", "~"))
    on_hub = name.count("/") == 1 and not path_like and not Path(name).exists()
    data = ModelCardData(
        base_model=name if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["wemask", "massive-activations", "custom_code"],
    )
    was_learned = isinstance(config.strength, LearnableStrength) and saved.learned
    learned = " (learned; the mean over the layers)" if was_learned else ""
    revision = f" (revision {saved.base_revision})" if saved.base_revision else ""
    text = _TEXT.format(
        title=f"{name or kind}, softened",
        kind=kind,
        base=f"{name or 'not named'}{revision}",
        me_layer="not detected" if saved.report is None else saved.report.layer,
        layers=", ".join(map(str, saved.layers)),
        tokens=config.tokens,
        dims=f"{config.dims}: {_dims(saved)}",
        rate=config.rate,
        site=config.site,
        fill=config.fill,
        what=_CONTROL if choices & _CONTROLS else _OPERATOR,
        strength=f"{saved.strength:g}{learned}",
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _dims(saved: Manifest) -> str:
    if saved.dims is None:
        return "chosen anew in each forward"
    different = {tuple(dims) for dims in saved.dims.values()}
    if len(different) > 1:
        return "by layer, see wemask_config.json"
    (dims,) = different
    shown = ", ".join(map(str, dims[:16]))
    return f"{shown}, ... ({len(dims)})" if len(dims) > 16 else shown
