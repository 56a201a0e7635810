"""A model's folder, looked at before transformers and PEFT see it: files, shapes, places, lengths.

Of a damaged one these libraries raise whatever is raised deep inside, or they notice nothing: a
shard may lie anywhere, and 10**9 layers are built until the memory is full.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wemask.errors import ModelError, judged_by
from wemask.files import read_json, regular

INDEX = "model.safetensors.index"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OBJECTS = (  # JSON that holds an object, and is small
    *("config.json", "generation_config.json", ADAPTER_CONFIG, "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json"),
)
TEXTS = (
    *("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    "chat_template.jinja",
)
COUNTS = re.compile(r"(^|_)(layers?|experts|heads)$")  # of num_hidden_layers, n_layer, ...
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
LARGEST_COUNT = 4096  # the deepest published model has a tenth of it


def as_path(folder: object, what: str = "folder") -> Path:
    """A folder as a caller gave it.

    Raises:
        ModelError: it is no path.
    """
    if isinstance(folder, (str, os.PathLike)):
        return Path(os.fspath(folder))  # pyright: ignore[reportUnknownArgumentType]
    raise ModelError(f"The {what} must be a path, got {folder!r}. Type it as a text: 'FOLDER'.")


def check_folder(name: str, folder: Path, variant: str | None = None) -> None:
    """Refuse a folder whose model, or whose adapter, could not be loaded whole.

    Args:
        name: what the user called it, for messages.
        folder: of an adapter where it has an adapter_config.json, else of a model.
        variant: weight file variant.

    Raises:
        ModelError: no such folder, no config.json, no weights or pickled ones, settings or weights
            that are damaged or lie elsewhere.
    """
    files = _listed(name, folder)
    check_texts(folder)
    if ADAPTER_CONFIG in files:
        names = [ADAPTER] * (ADAPTER in files)
    elif "config.json" in files:
        config = read_json(folder / "config.json", ModelError)
        _check_counts(folder / "config.json", config)
        names = _weights(folder, variant, config)
    else:
        gguf = next((f" Give the file: {folder}/{f}" for f in files if f.endswith(".gguf")), "")
        raise ModelError(
            f"{name} is no model folder: config.json was sought, found {files or 'nothing'}.{gguf}"
        )
    if not names:
        raise ModelError(_no_weights(name, files))
    for weights in names:
        tensor_names(own_file(folder, weights, links=True))


def check_texts(folder: Path) -> None:
    """Refuse settings and tokenizers that are no regular files, or no JSON objects (ModelError)."""
    for file in TEXTS:
        if os.path.lexists(folder / file):
            regular(folder / file, ModelError)
    for file in OBJECTS:
        if os.path.lexists(folder / file):
            read_json(folder / file, ModelError)


def own_file(folder: Path, name: str, *, links: bool = False) -> Path:
    """The file of that name in a folder, also where it is a link within it or to the hub's cache.

    Args:
        folder: of a model.
        name: as its index has it.
        links: follow any link: people keep large weights on another disk. Not what is passed on: a
            downloaded folder would take a private file along.

    Raises:
        ModelError: no regular file, or one outside.
    """
    path = folder / name
    regular(path, ModelError)
    target = path.resolve()
    cached = target.parent.name == "blobs" and target.parents[1].name.startswith("models--")
    named_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if named_inside and (links or cached or target.is_relative_to(folder.resolve())):
        return path
    raise ModelError(
        f"{path} leads out of the folder, to {target}; a model's files must lie inside. Copy that "
        "file there if it is meant."
    )


def weight_map(index: Path) -> dict[str, str]:
    """Tensors and their files, of a shard index; ModelError: it holds none, or something else."""
    shards = read_json(index, ModelError).get("weight_map")
    good = isinstance(shards, dict) and shards and all(isinstance(f, str) for f in shards.values())
    if not good:
        raise ModelError(f"{index} must hold a weight_map of tensors and files. Restore it.")
    return shards  # pyright: ignore[reportReturnType]


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file.

    Raises:
        ModelError: its header is damaged, or the file is shorter or longer than it says.
    """
    from safetensors import safe_open

    refused = f"{path}, which cannot be loaded: it is damaged or cut short, restore it"
    with judged_by("safetensors", ModelError, refused), safe_open(path, "pt") as file:
        return list(file.keys())


def _listed(name: str, folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} is no folder that can be read: {error}.") from error


def _weights(folder: Path, variant: str | None, config: dict[str, Any]) -> list[str]:
    """Names of the weight files that transformers would read, in its order of search."""
    added = f".{variant}" if variant else ""
    single = str(config.get("transformers_weights") or f"model{added}.safetensors")
    if os.path.lexists(folder / single):
        return [single]
    index = folder / (f"{INDEX}{added}.json")
    if not os.path.lexists(index):
        return []
    return sorted({*weight_map(index).values()})


def _no_weights(name: str, files: list[str]) -> str:
    pickled = [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
    reason = (
        f"{', '.join(pickled)} is a pickle, which can run code when it is opened; convert it to "
        "safetensors (model.save_pretrained) first."
        if pickled
        else "copy it there, or give another folder."
    )
    sought = ADAPTER if ADAPTER_CONFIG in files else "model.safetensors"
    return f"{name} has no weights: {sought} was sought; {reason}"


def _check_counts(path: Path, config: dict[str, Any]) -> None:
    if any(key in LAYERS and value < 1 for key, value in _numbers(config)):
        raise ModelError(f"{path} says that the model has no layers. Restore it.")
    for key, value in _numbers(config):
        if COUNTS.search(key) and value > LARGEST_COUNT:
            raise ModelError(
                f"{path} says {key}={value:,}; no model has more than {LARGEST_COUNT:,}. Restore "
                "it."
            )


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a config and of the configs in it."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield key, value
