"""Exported folders, loaded where wemask cannot be imported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from families import logits, sequence
from safetensors.torch import load_file, save_file

# Loads each folder in an interpreter that cannot import wemask. What it finds goes to a file.
CHILD = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "wemask" or name.startswith("wemask."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

ids, found = load_file(sys.argv[1])["ids"], {}
REMOTE = {"trust_remote_code": True}
with torch.no_grad():
    for folder in sys.argv[3:]:
        name = folder.rpartition("/")[2]
        if name == "damaged":
            try:
                AutoModelForCausalLM.from_pretrained(folder, **REMOTE)
                raise SystemExit("a damaged operator was ignored")
            except ValueError as error:
                print(type(error).__name__, error)
            continue
        plain = name.startswith("plain")
        options = {} if plain else REMOTE
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        found[f"{name}/logits"] = model(input_ids=ids, use_cache=False).logits
        if plain:
            continue
        assert type(AutoConfig.from_pretrained(folder, **REMOTE)).model_type.startswith("wemask_")
        placed = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, **REMOTE)
        found[f"{name}/placed"] = placed(input_ids=ids, use_cache=False).logits
        inner = AutoModel.from_pretrained(folder, **REMOTE)
        found[f"{name}/hidden"] = inner(input_ids=ids, use_cache=False).last_hidden_state
        mask = torch.ones_like(ids)
        found[f"{name}/generated"] = model.generate(
            ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        model.save_pretrained(folder + "-again")
        again = AutoModelForCausalLM.from_pretrained(folder + "-again", **REMOTE)
        found[f"{name}/again"] = again(input_ids=ids, use_cache=False).logits
        model.wemask_handle.remove()
        found[f"{name}/removed"] = model(input_ids=ids, use_cache=False).logits
assert "wemask" not in sys.modules
save_file({key: value.contiguous() for key, value in found.items()}, sys.argv[2])
"""


def without_wemask(*folders: Path) -> tuple[dict[str, torch.Tensor], str]:
    """What CHILD finds in `folders`, and what it prints."""
    place = folders[0].parent
    save_file({"ids": sequence()}, place / "ids")
    words = [place / "ids", place / "found", *folders]
    command = [sys.executable, "-c", CHILD, *map(str, words)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return load_file(place / "found"), child.stdout


def expected(model: Any) -> dict[str, torch.Tensor]:
    """The same of a softened model in this process; its softening is removed on the way."""
    ids = sequence()
    mask = torch.ones_like(ids)
    with torch.no_grad():
        within = model.model if model.base_model is model else model.base_model  # Llama 4: itself
        inner = within(input_ids=ids, use_cache=False).last_hidden_state
    on = logits(model, ids)
    generated = model.generate(
        ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    model.wemask_handle.remove()
    off = logits(model, ids)
    assert not torch.equal(on, off)
    same = dict.fromkeys(("logits", "placed", "again"), on)
    return {**same, "hidden": inner, "generated": generated, "removed": off}


def check(found: dict[str, torch.Tensor], name: str, wanted: dict[str, torch.Tensor]) -> None:
    assert {key for key in found if key.startswith(f"{name}/")} == {f"{name}/{k}" for k in wanted}
    for key, value in wanted.items():
        assert torch.equal(found[f"{name}/{key}"], value), key
