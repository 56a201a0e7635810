import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from run_support import (
    PowerCut,
    StopAfter,
    call,
    crash,
    fit,
    interrupt,
    log_of,
    quick,
    quiet,
    said,
    settings,
    start,
    trained,
    weights,
)
from torch import nn

import wemask
from wemask.checkpoint.save_load import CONFIG_NAME, read_config
from wemask.data.chat import choose_loss, loss_mask
from wemask.data.examples import load_examples
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError, DataError, RunFolderError
from wemask.train import prepare as prepare_module
from wemask.train import training
from wemask.train.prepare import prepare
from wemask.train.saved_state import last_checkpoint
from wemask.train.training import arguments_of, train

# --- what a run leaves ----------------------------------------------------------------------------


def test_a_softened_run_leaves_everything_that_its_folder_should_hold() -> None:
    folder, text = trained("method=wemask")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.resolved.yaml", "env.json", "me_layer.json", "wemask_config.json"),
        *("checkpoints", "final", "metrics.jsonl", "progress.json", ".lock"),
    }
    assert f"Saved: {folder / 'final'}" in text
    assert MELayerReport.load(folder / "me_layer.json").found


def test_the_final_model_loads_with_the_operator_and_the_trained_weights() -> None:
    folder, _ = trained("method=wemask")
    model, tokenizer = wemask.load(folder / "final")
    handle: Any = model.wemask_handle
    report = MELayerReport.load(folder / "me_layer.json")
    assert handle.strength == 1.0
    assert report.layer is not None
    assert min(handle.layers) == report.layer + 1
    saved = weights(folder / "final")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    assert tokenizer.chat_template


def test_plain_sft_leaves_a_plain_model() -> None:
    from transformers import AutoModelForCausalLM

    folder, _ = trained("method=sft")
    assert not list(folder.rglob("wemask_config.json"))
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert not hasattr(model, "wemask_handle")


def test_training_moves_every_part_of_the_model(tiny: Any) -> None:
    before = tiny.model.state_dict()
    after = weights(trained("method=wemask")[0] / "final")
    assert [name for name in after if torch.equal(after[name], before[name])] == []


def test_the_screen_says_model_layer_operator_and_loss() -> None:
    folder, text = trained("method=wemask")
    layer = MELayerReport.load(folder / "me_layer.json").layer
    words = ("parameters)", f"ME Layer {layer}", "dims me_norm", "[[", "Trained:", str(folder))
    assert [word for word in words if word not in text] == []


# --- the operator is on, and only where it should be ----------------------------------------------


def hand_made_loss(config: Any, softened: bool) -> float:
    """Mean cross-entropy of the first batch, by a plain forward of our own."""
    import torch.nn.functional as F
    from transformers import set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    prepared = prepare(config.with_method("wemask" if softened else "sft"))
    examples = load_examples(config.data)
    loss = choose_loss(examples[0], prepared.tokenizer)
    # Only the order of the examples is asked of TRL; what they are and cost is computed here.
    set_seed(config.seed)
    arguments = arguments_of(config, prepared.model, loss, config.output_dir / "unused")
    with patch.dict(os.environ):
        trainer = SFTTrainer(
            model=prepared.model,  # pyright: ignore
            args=SFTConfig(**arguments),
            train_dataset=examples,  # pyright: ignore
            processing_class=prepared.tokenizer,
        )
    batch = next(iter(trainer.get_train_dataloader()))
    total, count = 0.0, 0
    rows: list[Any] = list(examples)
    masks = [loss_mask(example, prepared.tokenizer, loss) for example in rows]
    for row, attention in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = row[attention.bool()].tolist()
        (mask,) = [mask for mask in masks if mask.input_ids == ids]
        with torch.no_grad():
            logits = prepared.model(torch.tensor([ids])).logits[0, :-1]
        targets = torch.tensor(ids[1:])
        chosen = torch.tensor(mask.trained[1:])
        total += float(F.cross_entropy(logits[chosen], targets[chosen], reduction="sum"))
        count += int(chosen.sum())
    return total / count


def test_the_first_loss_is_that_of_the_softened_model(tmp_path: Path) -> None:
    config = quick(tmp_path, "operator.rate=0.2")
    soft, plain = hand_made_loss(config, True), hand_made_loss(config, False)
    assert abs(soft - plain) > 1e-3  # else the test could not tell
    on = log_of(trained("method=wemask", "operator.rate=0.2")[0], 1)
    off = log_of(trained("method=sft")[0], 1)
    assert on["loss"] == pytest.approx(soft, abs=2e-4)
    assert off["loss"] == pytest.approx(plain, abs=2e-4)
    assert on["wemask/strength"] == 1.0
    assert on["wemask/tokens_touched"] > 0
    assert "wemask/sink_mass" in off
    assert "wemask/strength" not in off


def test_checkpointing_of_activations_changes_nothing() -> None:
    plain = weights(trained("method=wemask")[0] / "final")
    again = weights(trained("method=wemask", "trainer.activation_checkpointing=true")[0] / "final")
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


def test_a_schedule_is_logged_and_ends_at_its_end() -> None:
    words = "operator.strength={start: 0.0, end: 0.5, steps: 3}"
    folder, _ = trained("method=wemask", words)
    seen = [log_of(folder, step)["wemask/strength"] for step in (1, 2, 3, 4)]
    assert seen == pytest.approx([0.0, 0.5 / 3, 1 / 3, 0.5])
    model, _ = wemask.load(folder / "final")
    assert model.wemask_handle.strength == 0.5  # pyright: ignore


@pytest.mark.parametrize("method", ["base", "training_free"])
def test_methods_that_train_nothing_say_so_and_write_nothing(method: str, tmp_path: Path) -> None:
    console = quiet()
    assert train(quick(tmp_path / "out", f"method={method}"), console) is None
    assert f"method={method} trains nothing" in said(console)
    assert ("operator" in said(console)) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["wemask", "sft", "base"])
def test_a_dry_run_shows_the_screen_and_writes_nothing(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = quiet()
    words = ("debug=fast", "dry_run=true", f"method={method}", "paths.output_dir=out")
    assert train(settings(*words), console) is None
    assert "run folder" in said(console)
    assert list(tmp_path.iterdir()) == []


# --- LoRA -----------------------------------------------------------------------------------------


def test_lora_trains_an_adapter_and_leaves_the_base_alone(tiny: Any) -> None:
    folder, text = trained("method=wemask", "peft=lora")
    saved = weights(folder / "final")
    assert all("lora_" in name for name in saved)
    assert f"({sum(value.numel() for value in saved.values()):,})" in text
    model, _ = wemask.load(folder / "final")
    inner: Any = model.get_base_model()  # pyright: ignore
    assert inner.wemask_handle.strength == 1.0
    before = tiny.model.state_dict()
    assert torch.equal(inner.lm_head.weight, before["lm_head.weight"]) or "lora" in str(
        type(inner.lm_head)
    )
    assert any(float(value.abs().sum()) for name, value in saved.items() if "lora_B" in name)


def test_two_lora_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tmp_path: Path) -> None:
    words = ("method=sft", "peft=lora", "trainer.max_steps=1")
    torch.rand(7)  # whatever was drawn before must not matter
    one = weights(fit(quick(tmp_path / "1", *words))[0] / "final")
    torch.rand(3)
    two = weights(fit(quick(tmp_path / "2", *words))[0] / "final")
    other = weights(fit(quick(tmp_path / "3", *words, "seed=1"))[0] / "final")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# --- running it again -----------------------------------------------------------------------------


def test_a_checkpoint_has_its_operator_before_its_trainer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path, "method=wemask", "operator.strength=learnable")
    folder = crash(config, monkeypatch) / "checkpoints" / "checkpoint-2"
    values = read_config(folder)
    assert values["operator"] == config.operator.to_dict()
    assert '"wemask_llama"' in (folder / "config.json").read_text()
    assert all(theta != config.operator.strength.theta() for theta in values["learned"].values())
    written = [(folder / name).stat().st_mtime_ns for name in (CONFIG_NAME, "trainer_state.json")]
    assert written == sorted(written)


LEARNED = "operator.strength=learnable"
BEST = ("data.validation=0.25", "trainer.load_best_model_at_end=true")


@pytest.mark.parametrize(
    "words", [(), ("peft=lora",), (LEARNED, *BEST), ("peft=lora", LEARNED)], ids=str
)
def test_a_resumed_run_ends_at_the_same_weights(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path, "method=wemask", *words)
    crash(config, monkeypatch)
    folder, text = fit(config)
    assert "Resuming from" in text and "checkpoint-2" in text
    uninterrupted = weights(trained("method=wemask", *words)[0] / "final")
    resumed = weights(folder / "final")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)
    ends = [read_config(f / "final") for f in (folder, trained("method=wemask", *words)[0])]
    assert ends[0].get("learned") == ends[1].get("learned")
    assert bool(ends[0].get("learned")) == (LEARNED in words)


def test_a_finished_run_says_so_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained("method=wemask")
    config = quick(folder.parent.parent, "method=wemask")
    before = {path: path.stat().st_mtime_ns for path in (folder / "final").iterdir()}
    monkeypatch.setattr(prepare_module, "load_both", None)  # it does not even load the model
    console = quiet()
    assert train(config, console) == folder
    assert "This run is finished" in said(console)
    assert {path: path.stat().st_mtime_ns for path in (folder / "final").iterdir()} == before


def test_a_folder_of_another_config_is_refused_and_left_alone() -> None:
    folder, _ = trained("method=wemask")
    config = quick(folder, f"paths.run_dir={folder}", "operator.rate=0.5")
    with pytest.raises(RunFolderError, match=r"operator\.rate: 0\.03 there, 0\.5 now"):
        train(config, quiet())


def test_half_a_final_folder_is_not_a_finished_run(tmp_path: Path) -> None:
    config = quick(tmp_path, "method=sft", "trainer.max_steps=1")
    config.folder().mkdir(parents=True)
    (config.folder() / "final.partial").mkdir()
    (config.folder() / "final.partial" / "rubbish").write_text("x")
    folder, _ = fit(config)
    assert (folder / "final" / "model.safetensors").exists()
    assert not (folder / "final" / "rubbish").exists()


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_is_one_message_and_the_last_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    original = Trainer._save_optimizer_and_scheduler

    def full(self: Any, output_dir: str) -> None:
        if self.state.global_step > 2:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 9 vs 0")
        original(self, output_dir)

    config = quick(tmp_path, "method=wemask")
    with monkeypatch.context() as context:
        context.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(RunFolderError, match="the same command resumes") as error:
            fit(config)
    assert error.value.exit_code == 2
    newest, broken = last_checkpoint(config.folder())
    assert newest is not None
    assert (newest.name, broken) == ("checkpoint-2", ["checkpoint-4"])
    model, _ = wemask.load(newest)
    assert model.wemask_handle.layers  # pyright: ignore
    folder, text = fit(config)
    assert "checkpoint-4 is half-written" in text
    assert (folder / "final").exists()


def test_a_final_model_that_does_not_fit_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    config = quick(tmp_path, "method=wemask")
    with monkeypatch.context() as context:
        context.setattr(training, "save", full)
        with pytest.raises(RunFolderError, match="No space left on device"):
            fit(config)
    assert not (config.folder() / "final").exists()
    folder, _ = fit(config)
    assert (folder / "final").exists()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        ("trainer.packing=true", ConfigError, "flash_attention_2"),
        ("trainer.max_length=5", DataError, "nothing to train in any example"),
        ("trainer.optim=adamw", ConfigError, "TRL refuses these settings"),
        (
            "data.validation=0.5 trainer.load_best_model_at_end=true trainer.eval_strategy=epoch",
            ConfigError,
            "TRL refuses these settings",
        ),
        ("peft=lora peft.target_modules=[q_proj,nope]", ConfigError, "called 'nope', but .*v_proj"),
        ("peft=lora peft.r=0", ConfigError, "PEFT refuses these settings"),
    ],
)
def test_settings_that_only_trl_or_peft_can_judge(
    words: str, kind: type[Exception], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=expected):
        train(quick(tmp_path, *words.split()), quiet())


def test_the_user_wins_over_what_follows_from_the_machine() -> None:
    config = settings("trainer.report_to=none", "trainer.run_name=mine", "logger=wandb")
    prepared = prepare(config.with_method("base"))
    loss = choose_loss(load_examples(config.data)[0], prepared.tokenizer)
    values = arguments_of(config, prepared.model, loss, Path("x"))
    assert (values["report_to"], values["run_name"]) == ("none", "mine")
    assert values["bf16"] is False  # TRL's own default is on, also where there is none
    assert values["seed"] == config.seed


# --- W&B ------------------------------------------------------------------------------------------


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Log lines of an offline run file: blocks of 32 KiB of (crc, length, kind, part)."""
    from wandb.proto import wandb_internal_pb2

    data, at, record, lines = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # whole, or the last part
            continue
        message: Any = wandb_internal_pb2.Record()  # pyright: ignore
        message.ParseFromString(record)
        record = b""
        if message.WhichOneof("record_type") == "history":
            lines.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in message.history.item
                }
            )
    return lines


@pytest.fixture
def kept_environment() -> Iterator[None]:
    with patch.dict(os.environ):
        yield


@pytest.mark.usefixtures("kept_environment")
def test_wandb_keeps_one_run_per_folder_and_its_id_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("debug=fast", f"paths.output_dir={tmp_path}", "logger.mode=offline")
    config = settings(*words, "method=wemask")
    folder = crash(config, monkeypatch)
    name = (folder / "wandb_run_id").read_text()
    fit(config)
    # the second run of one process
    plain, _ = fit(settings(*words, "method=sft", "data.validation=0.25"))
    assert (folder / "wandb_run_id").read_text() == name
    files = sorted((folder / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(files) == len(list((folder / "wandb").glob("offline-run-*"))) == 2
    lines = [line for file in files for line in wandb_history(file)]
    keys = {"train/loss", *(f"train/wemask/{key}" for key in ("strength", "tokens_touched"))}
    keys |= {f"train/wemask/{key}" for key in ("me_layer", "massive_max", "sink_mass")}
    trained_lines = [line for line in lines if "train/loss" in line]
    assert all(keys <= line.keys() for line in trained_lines)
    assert {line["train/global_step"] for line in trained_lines} == {1, 2, 3, 4}
    (other,) = (plain / "wandb").glob("offline-run-*/run-*.wandb")
    assert name not in other.name
    logged = wandb_history(other)
    assert len([line for line in logged if "train/loss" in line]) == 4
    assert [line["train/global_step"] for line in logged if "eval/loss" in line] == [2, 4]
    assert not [key for line in logged for key in line if key.endswith("wemask/strength")]


# --- whole processes ------------------------------------------------------------------------------


def wait_for(path: Path, process: Any) -> None:
    for _ in range(1000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


def test_ctrl_c_in_the_middle_saves_and_the_same_command_finishes(tmp_path: Path) -> None:
    words = (
        *("debug=fast", "logger=none", f"paths.output_dir={tmp_path}"),
        *("trainer.max_steps=2000", "trainer.save_steps=5", "trainer.save_total_limit=2"),
    )
    process = start("train.py", *words)
    folder = settings(*words).folder()
    wait_for(folder / "checkpoints" / "checkpoint-5" / "wemask_config.json", process)
    interrupt(process)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "Traceback" not in out + err
    assert err.count("Error: Interrupted at step") == 1
    assert "The same command resumes." in err
    newest, broken = last_checkpoint(folder)
    assert newest is not None
    assert broken == []
    model, _ = wemask.load(newest)
    assert model.wemask_handle.strength == 1.0  # pyright: ignore
    assert not (folder / "final").exists()
    # The same command again, in this process, and only until it is seen to go on from there.
    soon = patch.object(StopAfter, "steps", int(newest.name[11:]) + 1)
    crashing = patch.object(training, "SofteningCallback", StopAfter)
    with soon, crashing, pytest.raises(PowerCut):
        fit(settings(*words))


@pytest.mark.slow
def test_ctrl_c_then_the_same_command_in_two_processes(tmp_path: Path) -> None:
    words = (
        *("debug=fast", f"paths.output_dir={tmp_path}"),
        *("trainer.max_steps=60", "trainer.save_steps=5"),
    )
    process = start("train.py", *words)
    folder = settings(*words).folder()
    wait_for(folder / "checkpoints" / "checkpoint-5" / "wemask_config.json", process)
    interrupt(process)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    code, _, err = call("train.py", *words)
    assert code == 0, err
    assert "Resuming from" in err
    resumed = weights(folder / "final")
    steps = ("trainer.max_steps=60", "trainer.save_steps=5")
    uninterrupted = weights(trained("method=wemask", *steps)[0] / "final")
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


def test_a_training_process_never_imports_deepspeed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['train.py', *sys.argv[1:]]; import runpy;"
        "runpy.run_path('train.py', run_name='__main__');"
        "print('deepspeed' in sys.modules)"
    )
    import subprocess

    from run_support import FAST, REPOSITORY

    done = subprocess.run(
        [sys.executable, "-c", code, *FAST, f"paths.output_dir={tmp_path}", "trainer.max_steps=1"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "Saved: " in done.stdout
    assert list(tmp_path.glob("default/*/final/model.wemask.safetensors"))


def test_settings_reach_trl(tmp_path: Path) -> None:
    loss: Any = SimpleNamespace(completion_only=None, assistant_only=None)
    model: Any = nn.Linear(2, 2)
    model.config = SimpleNamespace()
    made = arguments_of(quick(tmp_path, "deepspeed=zero2"), model, loss, tmp_path)
    assert made["deepspeed"]["zero_optimization"] == {"stage": 2}
