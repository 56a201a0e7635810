"""Exports and merges: another process without wemask computes the same bits, or stops loudly."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checkpoint_support import WEIGHTS, remove, truncate, write
from export_support import check, expected, without_wemask
from families import FAMILIES, LAYERS, close, logits, planted, sequence, settings
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.dynamic_module_utils import get_relative_import_files

import wemask
from wemask.checkpoint.export import native_names, sources
from wemask.checkpoint.pretrained import load_model
from wemask.checkpoint.save_load import CONFIG_NAME
from wemask.cli import main
from wemask.errors import ModelError


def softened(folder: Path, family: str = "llama", **options: Any) -> Any:
    case = planted(family)
    wemask.soften(case.model, case.report, settings())
    wemask.save(case.model, None, folder, **options)
    return case.model


def adapter(folder: Path) -> torch.Tensor:
    """A softened LoRA saved to `folder`, its base beside it; its logits."""
    case = planted("llama")
    case.model.save_pretrained(folder.parent / "base")
    base: Any = load_model(str(folder.parent / "base"))
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model: Any = get_peft_model(base, lora)
    wemask.soften(model, case.report, settings())
    model.eval()
    wemask.save(model, None, folder)
    return logits(model, sequence())


class Exported(NamedTuple):
    """All that one process without wemask loaded, and the models that it should equal."""

    place: Path
    found: dict[str, torch.Tensor]
    printed: str
    llama: dict[str, torch.Tensor]
    mixture: dict[str, torch.Tensor]
    adapter: torch.Tensor  # logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    place = tmp_path_factory.mktemp("exported")
    model = softened(place / "whole")
    softened(place / "sharded", max_shard_size="40KB")
    mixture = softened(place / "mixture", "mixtral")
    on = adapter(place / "adapter")
    before = {p.name: p.read_bytes() for p in (place / "base").iterdir()}
    wemask.merge(place / "adapter", place / "merged")
    names = ("whole", "sharded", "mixture", "adapter", "merged")
    for name in names:
        wemask.export(place / name, place / f"out-{name}")
    wemask.export(place / "sharded", place / "plain", plain=True)
    wemask.export(place / "out-whole", place / "plain-of-export", plain=True)
    wemask.export(place / "adapter", place / "adapter-plain", plain=True)
    assert {p.name: p.read_bytes() for p in (place / "base").iterdir()} == before
    shutil.copytree(place / "out-whole", place / "damaged")
    (place / "damaged" / CONFIG_NAME).write_text("{")
    folders = [place / f"out-{name}" for name in names]
    others = [place / name for name in ("plain", "plain-of-export", "damaged")]
    found, printed = without_wemask(*folders, *others)
    return Exported(place, found, printed, expected(model), expected(mixture), on)


def test_a_process_without_wemask_computes_the_same_bits(exported):
    check(exported.found, "out-whole", exported.llama)
    check(exported.found, "out-mixture", exported.mixture)


def test_shards_stay_shards(exported):
    for name in ("sharded", "out-sharded", "plain"):
        assert len(list((exported.place / name).glob("*.safetensors"))) > 3
    check(exported.found, "out-sharded", exported.llama)


@pytest.mark.parametrize("name", ["whole", "sharded", "mixture"])
def test_wemask_load_opens_an_export(name, exported):
    loaded = wemask.load(exported.place / f"out-{name}")[0]
    wanted = exported.mixture if name == "mixture" else exported.llama
    assert torch.equal(logits(loaded, sequence()), wanted["logits"])


@pytest.mark.parametrize("name", ["plain", "plain-of-export"])
def test_plain_is_the_stock_model_bit_for_bit(name, exported):
    assert torch.equal(exported.found[f"{name}/logits"], exported.llama["removed"])
    folder = exported.place / name
    assert not [p.name for p in folder.iterdir() if "wemask" in p.read_text(errors="replace")]
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "auto_map" not in config


def test_merged_adapter_equals_the_adapter(exported):
    merged: Any = wemask.load(exported.place / "merged")[0]
    assert not isinstance(merged, PeftModel)
    assert close(logits(merged, sequence()), exported.adapter, 1e-6)
    wanted = expected(merged)
    check(exported.found, "out-merged", wanted)
    check(exported.found, "out-adapter", wanted)


def test_a_plain_adapter_loads_with_stock_peft(exported):
    base: Any = load_model(str(exported.place / "base"))
    stock = PeftModel.from_pretrained(base, str(exported.place / "adapter-plain"))
    loaded: Any = wemask.load(exported.place / "adapter")[0]
    loaded.base_model.model.wemask_handle.remove()
    assert torch.equal(logits(stock, sequence()), logits(loaded, sequence()))
    assert not close(logits(stock, sequence()), exported.adapter)


def test_a_damaged_operator_stops_an_export_from_loading(exported):
    said = exported.printed.strip().splitlines()[-1]
    assert said.startswith("ModelError") and "wemask_config.json" in said and "is damaged" in said


NO_CAUSAL_LM = ("qwen2_5_vl", "qwen3_vl")  # transformers loads them with another auto class


@pytest.mark.parametrize("family", NO_CAUSAL_LM)
def test_what_no_auto_class_loads_is_refused(family, tmp_path):
    case = planted(family)
    wemask.soften(case.model, case.report, settings())
    wemask.save(case.model, None, tmp_path / "saved")
    with pytest.raises(ModelError, match=f"'{family}' it has no AutoModelForCausalLM"):
        wemask.export(tmp_path / "saved", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NO_CAUSAL_LM])
def test_every_family(family, tmp_path):
    changes = {"dims": "massive"} if family == "olmo" else {}
    case = planted(family)
    wemask.soften(case.model, case.report, settings(**changes))
    wemask.save(case.model, None, tmp_path / "saved")
    wemask.export(tmp_path / "saved", tmp_path / "out")
    found, _ = without_wemask(tmp_path / "out")
    check(found, "out", expected(case.model))


def test_the_code_is_wemasks_own_and_all_of_it_is_found(tmp_path):
    softened(tmp_path / "saved")
    wemask.export(tmp_path / "saved", tmp_path / "out")
    package = Path(wemask.__file__).parent
    for name, source in sources().items():
        assert (tmp_path / "out" / f"wemask_{name}.py").read_text() == source
        room, _, module = name.partition("_")
        own = package / room / f"{module}.py" if module else package / f"{name}.py"
        lines = zip(source.splitlines(), own.read_text().splitlines())  # noqa: B905
        changed = [(new, old) for new, old in lines if new != old]
        assert all(old.lstrip().startswith("from wemask") for _, old in changed)
        compile(source, name, "exec")
    # Transformers fetches from the hub what it sees in `from .NAME import`, and nothing else.
    seen = get_relative_import_files(tmp_path / "out" / "modeling_wemask.py")
    assert {Path(p).stem for p in seen} == {f"wemask_{name}" for name in sources()}
    assert len(sources()) < 20, "the export should stay small: what drew in another module?"


def test_the_tokenizer_and_the_card(tmp_path, fresh_tiny):
    from huggingface_hub import ModelCard
    from transformers import AutoTokenizer

    model, tokenizer = fresh_tiny()
    model.config._name_or_path = "someone/tiny"
    wemask.soften(model, wemask.detect(model, tokenizer), wemask.WeMaskConfig(rate=0.02))
    wemask.save(model, tokenizer, tmp_path / "saved")
    wemask.export(tmp_path / "saved", tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    text = "Tom has 5 apples."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    card: Any = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "someone/tiny"
    assert {"wemask", "custom_code"} <= set(card.data.tags or [])
    handle: Any = model.wemask_handle
    for said in ("trust_remote_code=True", ", ".join(map(str, handle.layers)), "0.02", "me_norm"):
        assert said in card.text
    assert f"| ME Layer (where massive activations are born) | {handle.report.layer} |" in card.text


# --- the commands, and what they refuse -----------------------------------------------------------


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_commands_say_what_they_did(tmp_path, capsys):
    adapter(tmp_path / "run" / "final")
    assert run("export", tmp_path / "run", tmp_path / "out") == 0
    assert run("export", tmp_path / "run", tmp_path / "plain", "--plain") == 0
    assert run("merge", tmp_path / "run", tmp_path / "merged") == 0
    assert run("export", tmp_path / "merged", tmp_path / "plain-model", "--plain") == 0
    first, second, third, fourth = capsys.readouterr().out.strip().splitlines()
    assert "adapter was merged" in first and "trust_remote_code=True" in first
    assert "The operator was left out: a stock adapter" in second and "NOT softened" in second
    assert f"Written: {tmp_path}/merged, a whole softened model" in third
    assert "The operator was left out: a stock model" in fourth
    on = logits(wemask.load(tmp_path / "run" / "final")[0], sequence())
    for folder in ("out", "merged"):
        assert close(logits(wemask.load(tmp_path / folder)[0], sequence()), on, 1e-6)


def test_what_the_commands_refuse(tmp_path, capsys):
    softened(tmp_path / "saved")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("")
    planted("llama").model.save_pretrained(tmp_path / "stock")
    for words, message in (
        (("export", tmp_path / "saved", taken), f"is not empty. Give a new folder, or remove it "
                                                f"first: rm -r {taken}"),
        (("merge", tmp_path / "saved", taken), "is not empty"),
        (("export", tmp_path / "saved", taken / "mine"), "is a file"),
        (("export", tmp_path / "stock", tmp_path / "out"), "holds no softened model"),
        (("export", tmp_path / "stock", tmp_path / "out", "--plain"), "holds no softened model"),
        (("export", "/nowhere", tmp_path / "out"), "was sought and not found"),
        (("merge", tmp_path / "saved", tmp_path / "out"), "no adapter but a whole model"),
        (("export", tmp_path / "saved", "/dev/null/x"), "cannot be written"),
        (("export", tmp_path / "saved", tmp_path / ("n" * 300)), "cannot be written (["),
        (("merge", tmp_path / "saved", tmp_path / ("n" * 300)), "no adapter but a whole model"),
        (("detect", "--model", "x" * 5000), "...[5000 characters]..."),
    ):  # fmt: skip
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert said.count("Error: ") == 1 and message in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"saved", "stock", "taken"}


DAMAGE = {
    "no weights": (remove(WEIGHTS), r"has no weights"),
    "half the weights": (truncate(WEIGHTS), r"safetensors refuses"),
    "config a list": (write("config.json", "[1]"), r"must hold an object, found list"),
    "config not JSON": (write("config.json", "{"), r"no JSON that can be read"),
    "config of no type": (write("config.json", "{}"), r"say its model_type in a text, got None"),
    "type a number": (write("config.json", '{"model_type": 3}'), r"model_type in a text, got 3"),
    "a private file": (
        lambda folder: (folder / "notes.json").symlink_to(Path(__file__)),
        r"notes\.json leads out of the folder, to .*test_export\.py",
    ),
}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_not_exported(name, plain, tmp_path):
    softened(tmp_path / "saved")
    damage, message = DAMAGE[name]
    damage(tmp_path / "saved")
    with pytest.raises(ModelError, match=message):
        wemask.export(tmp_path / "saved", tmp_path / "out", plain=plain)
    assert not (tmp_path / "out").exists()


def test_a_damaged_index_is_not_exported(tmp_path):
    softened(tmp_path / "saved", max_shard_size="40KB")
    index = next((tmp_path / "saved").glob("*.index.*"))
    for text, message in (
        ("[1]", "found list"),
        ("{", "no JSON"),
        ("{}", "must hold a weight_map"),
    ):
        index.write_text(text)
        with pytest.raises(ModelError, match=message):
            wemask.export(tmp_path / "saved", tmp_path / "out")


def test_a_snapshot_of_the_hubs_cache_is_exported(tmp_path):
    """Its files are links to blobs that lie beside it."""
    cache = tmp_path / "models--ORG--NAME"
    softened(cache / "blobs")
    (cache / "snapshots" / "1").mkdir(parents=True)
    for blob in (cache / "blobs").iterdir():
        (cache / "snapshots" / "1" / blob.name).symlink_to(Path("../../blobs") / blob.name)
    wemask.export(cache / "snapshots" / "1", tmp_path / "out")
    wanted = logits(wemask.load(cache / "snapshots" / "1")[0], sequence())
    assert torch.equal(logits(wemask.load(tmp_path / "out")[0], sequence()), wanted)


def test_an_architecture_of_its_own_code_is_not_exported(tmp_path):
    with pytest.raises(
        ModelError, match=r"no AutoConfig, AutoModel, AutoModelForCausalLM.*--plain"
    ):
        native_names("strange")
    softened(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    path.write_text(path.read_text().replace("wemask_llama", "wemask_strange"))
    with pytest.raises(ModelError, match="model_type 'strange'"):
        wemask.export(tmp_path / "saved", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_checkpoint_is_exported_without_its_optimizer(tmp_path):
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings())
    folder = tmp_path / "checkpoint-7"
    case.model.save_pretrained(folder)  # as the trainer does: no variant
    wemask.checkpoint.save_load.mark(folder, handle)  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "optimizer.pt").write_text("")
    (folder / "trainer_state.json").write_text("{}")
    wemask.export(folder, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "model.wemask.safetensors" in names
    assert not names & {"optimizer.pt", "trainer_state.json", "model.safetensors"}
    loaded: Any = wemask.load(tmp_path / "out")[0]
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))
    assert loaded.wemask_handle.layers == list(range(2, LAYERS))


def test_an_export_can_be_moved(tmp_path):
    softened(tmp_path / "saved")
    wemask.export(tmp_path / "saved", tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "deeper.v1")
    wanted = logits(wemask.load(tmp_path / "saved")[0], sequence())
    assert torch.equal(logits(wemask.load(tmp_path / "deeper.v1")[0], sequence()), wanted)
