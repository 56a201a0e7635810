"""A softened model for others: a folder that loads where wemask is not installed.

The weights are copied as they are. Beside them go the operator's own source files, with nothing
changed but their import lines, and two generated classes which transformers finds through
`auto_map`. So there is one mechanism, and the exported model computes what `wemask.load` computes.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from wemask.checkpoint.manifest import CONFIG_NAME, PREFIX, STOPS, VARIANT, read_manifest
from wemask.checkpoint.model_card import write_card
from wemask.checkpoint.model_folder import INDEX, as_path, check_folder, own_file, weight_map
from wemask.checkpoint.save_load import check_free, is_adapter, merge, new_folder, variant_of
from wemask.errors import ModelError
from wemask.files import read_json

ENTRY = "checkpoint.remote"  # the module whose imports are all that an exported model needs
MODELING = "modeling_wemask"
# A model's and a tokenizer's files; an optimizer's state or a trainer's log is none of them.
COPIED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
LEFT_OUT = ("trainer_state.json", "me_layer.json", "engine.json", "wemask_files.json")


def export(folder: str | Path, out: str | Path, *, plain: bool = False, **options: Any) -> None:
    """Write a softened model for others, with a model card.

    `AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)` then loads it with the
    softening on, and refuses without `trust_remote_code`. An adapter is merged into its base model
    first.

    Args:
        folder: what `wemask.save` wrote, or a run folder (its `final/` is taken).
        out: a folder that does not exist or is empty; it appears whole or not at all.
        plain: leave the operator out: a stock model (or a stock adapter) with the same weights.
        **options: of `wemask.load`, to load the base model of an adapter.

    Raises:
        ModelError: `folder` holds no softened model or a damaged one, `out` is taken, or the
            architecture is not one of transformers' own.
        RunFolderError: `out` cannot be written.
        WemaskError: an adapter that does not load.
    """
    folder, out = final_folder(as_path(folder)), as_path(out)
    check_free(out)
    read_manifest(folder)
    check_folder(str(folder), folder, variant_of(folder))
    _check_kinds(folder)
    with new_folder(out) as partial:
        if plain:
            _write_plain(folder, partial)
        elif is_adapter(folder):
            merge(folder, partial, **options)
            _make_loadable(partial)
        else:
            _copy_model(folder, partial, VARIANT)
            _make_loadable(partial)


def final_folder(folder: Path) -> Path:
    """The model inside a run folder, else the folder itself."""
    return folder / "final" if (folder / "final").is_dir() else folder


def _check_kinds(folder: Path) -> None:
    for name, key, _ in STOPS:
        path = folder / name
        if path.exists() and not isinstance(kind := read_json(path, ModelError).get(key), str):
            raise ModelError(f"{path} must say its {key} in a text, got {kind!r}. Restore it.")


# --- weights --------------------------------------------------------------------------------------


def _copy_model(folder: Path, out: Path, variant: str | None) -> None:
    """Copy a model's files; weight files, sharded or not, get the given variant in their names."""
    files = {path for pattern in COPIED for path in folder.glob(pattern)}
    for path in sorted(files):
        if path.name not in LEFT_OUT:
            copied = out / _weights_name(path.name, variant)
            shutil.copyfile(own_file(folder, path.name), copied)
    for index in out.glob(f"{INDEX}*.json"):
        names = weight_map(index)
        named = {"weight_map": {k: _weights_name(names[k], variant) for k in names}}
        _write_json(index, read_json(index, ModelError) | named)


def _weights_name(name: str, variant: str | None) -> str:
    """`model.wemask.safetensors` <-> `model.safetensors`, and so for shards and their index."""
    added = "" if variant is None else f".{variant}"
    if name in (f"{INDEX}.json", f"{INDEX}.{VARIANT}.json"):
        return f"{INDEX}{added}.json"
    return re.sub(rf"^model(\.{VARIANT})?((-\d+-of-\d+)?\.safetensors)$", rf"model{added}\2", name)


def _write_plain(folder: Path, out: Path) -> None:
    _copy_model(folder, out, None)
    (out / CONFIG_NAME).unlink()
    for name, key, prefix in STOPS:
        if (out / name).exists():
            values = read_json(out / name, ModelError)
            values[key] = values[key].removeprefix(prefix)
            if values.pop("auto_map", None) is not None:  # of an export
                natives = native_names(values["model_type"])
                values["architectures"] = [natives["AutoModelForCausalLM"]]
            _write_json(out / name, values)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


# --- code -----------------------------------------------------------------------------------------


def _make_loadable(out: Path) -> None:
    """Add the code, the entries that lead transformers to it, and the card."""
    path = out / "config.json"
    values = read_json(path, ModelError)
    kind = values["model_type"].removeprefix(PREFIX)
    natives = native_names(kind)
    text = _TEMPLATE.format(
        kind=kind,
        model_type=values["model_type"],
        entry=ENTRY.replace(".", "_"),
        imported=", ".join(sorted(set(natives.values()))),
        **natives,
    )
    (out / f"{MODELING}.py").write_text(text)
    for name, source in sources().items():
        (out / f"wemask_{name}.py").write_text(source)
    values["architectures"] = [f"Wemask{natives['AutoModelForCausalLM']}"]
    values["auto_map"] = {auto: f"{MODELING}.Wemask{name}" for auto, name in natives.items()}
    _write_json(path, values)
    write_card(out, read_manifest(out), kind)


def native_names(kind: str) -> dict[str, str]:
    """Names of the native config and model classes of a model_type, by auto class.

    Raises:
        ModelError: transformers itself has none (a model with remote code of its own).
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    names = {
        "AutoConfig": CONFIG_MAPPING[kind].__name__ if kind in CONFIG_MAPPING else None,
        "AutoModel": MODEL_MAPPING_NAMES.get(kind),
        "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind),
    }
    if wrong := [auto for auto, name in names.items() if not isinstance(name, str)]:
        raise ModelError(
            f"An export builds on transformers' own classes, and for model_type {kind!r} it has "
            f"no {', '.join(wrong)}. Export --plain, without the operator, is all that is possible."
        )
    return {auto: str(name) for auto, name in names.items()}


_TEMPLATE = '''"""A {kind} model softened by WeMask; it loads with trust_remote_code=True.

Generated by `wemask export`. The wemask_*.py files beside it are wemask's own, but for their import
lines; wemask itself is not needed.
"""

from transformers import {imported}

from .wemask_{entry} import SoftenedModel


class Wemask{AutoConfig}({AutoConfig}):
    """Its model_type keeps stock loaders from dropping the operator."""

    model_type = "{model_type}"


class Wemask{AutoModel}(SoftenedModel, {AutoModel}):
    config_class = Wemask{AutoConfig}


class Wemask{AutoModelForCausalLM}(SoftenedModel, {AutoModelForCausalLM}):
    config_class = Wemask{AutoConfig}
'''


# `from wemask.ROOM.NAME import ...` and `from wemask.ROOM import NAME as ...`, at any indentation
_FROM_MODULE = re.compile(r"^(\s*from )wemask\.([\w.]+)( import )", re.M)
_FROM_ROOM = re.compile(r"^(\s*from )wemask\.(\w+) import (\w+)( as \w+)?$", re.M)


def sources() -> dict[str, str]:
    """The module `remote` and all of ours that it leads to: name -> source for a flat folder.

    In the folder they are called wemask_ROOM_NAME: transformers copies no folders, and an
    `operator.py` there would stand in the way of Python's own for everyone who works in it.
    """
    package = Path(__file__).parents[1]

    def flat(match: re.Match[str]) -> str:
        start, room, name, alias = match.groups()
        if (package / room).is_dir():
            return f"{start}. import wemask_{room}_{name}{alias or f' as {name}'}"
        return match[0]

    found: dict[str, str] = {}
    todo = [ENTRY]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        text = (package / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        rooms = [m for m in _FROM_ROOM.finditer(text) if (package / m[2]).is_dir()]
        todo += [f"{m[2]}.{m[3]}" for m in rooms]
        text = _FROM_ROOM.sub(flat, text)
        todo += [m[2] for m in _FROM_MODULE.finditer(text)]
        text = _FROM_MODULE.sub(lambda m: f"{m[1]}.wemask_{m[2].replace('.', '_')}{m[3]}", text)
        found[name] = text
    return {name.replace(".", "_"): text for name, text in found.items()}
