import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import CONF, REPOSITORY, options, quick, refused, settings

from wemask.evaluate.evaluation import tasks_from_config
from wemask.operator.settings import StrengthSchedule, WeMaskConfig
from wemask.settings.composition import compose
from wemask.settings.config import METHODS, ModelConfig

# --- every file composes --------------------------------------------------------------------------

NEEDED = {"custom": ("model.path=ORG/NAME",)}
DATA_PATH = {"gsm8k_cot": "x.parquet", "jsonl": "x.jsonl", "parquet": "x.parquet"}


@pytest.mark.parametrize("name", options("model"))
def test_every_model_file_becomes_settings(name: str) -> None:
    config = settings(f"model={name}", *NEEDED.get(name, ()))
    assert config.model.path
    assert config.model.trust_remote_code is False
    assert config.folder().name.startswith(f"{config.model.name}__wemask__s0__")
    assert config.model.name == ("NAME" if name == "custom" else name)


@pytest.mark.parametrize("name", options("operator"))
def test_every_operator_file_names_every_field(name: str) -> None:
    import yaml

    values = yaml.safe_load((CONF / "operator" / f"{name}.yaml").read_text())
    assert set(values) == {field.name for field in dataclasses.fields(WeMaskConfig)}
    assert settings("model.path=a/b", f"operator={name}").operator == WeMaskConfig(**values)


@pytest.mark.parametrize("name", options("data"))
def test_every_data_file_becomes_settings(name: str) -> None:
    path = [f"data.path={DATA_PATH[name]}"] if name in DATA_PATH else []
    assert settings(f"data={name}", *path).data.name == name


@pytest.mark.parametrize("name", options("method"))
def test_every_method_says_whether_it_trains_and_softens(name: str) -> None:
    config = settings(f"method={name}")
    assert config.trains is (name in ("sft", "wemask"))
    assert config.softens is (name in ("training_free", "wemask"))


def test_there_is_a_file_for_every_method() -> None:
    assert sorted(METHODS) == options("method")


@pytest.mark.parametrize("name", options("trainer"))
def test_every_trainer_file_is_fields_of_sft_config(name: str, tmp_path: Path) -> None:
    from trl.trainer.sft_config import SFTConfig

    values = settings("model.path=a/b", f"trainer={name}").trainer
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **values)
    assert {key: getattr(arguments, key) for key in values} == values


def test_peft_files_are_fields_of_lora_config() -> None:
    from peft import LoraConfig

    assert options("peft") == ["lora", "none"]
    assert settings("peft=none").peft is None
    values = settings("peft=lora").peft
    assert values is not None
    assert LoraConfig(**values).r == values["r"]


@pytest.mark.parametrize("name", options("tasks"))
def test_every_task_file_becomes_settings(name: str) -> None:
    cfg = compose("evaluate", [f"tasks=[{name}]"])
    tasks = tasks_from_config({key: dict(value) for key, value in cfg.tasks.items()})
    both = ["xstest_safe", "xstest_unsafe"]
    assert [task.name for task in tasks] == (both if name == "xstest" else [name])


def test_debug_fast_shrinks_the_run() -> None:
    assert settings("debug=fast").trainer["max_steps"] <= 10


# --- pass-through, choices and values -------------------------------------------------------------


def test_fields_of_trl_and_peft_arrive_verbatim() -> None:
    config = settings(
        "trainer.neftune_noise_alpha=5.0",
        "trainer.lr_scheduler_kwargs={min_lr: 1e-6}",
        "trainer.report_to=none",
        "peft=lora",
        "peft.use_rslora=true",
        "peft.target_modules=[q_proj,v_proj]",
    )
    assert config.trainer["neftune_noise_alpha"] == 5.0
    assert config.trainer["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    assert config.trainer["report_to"] == "none"
    assert config.peft is not None
    assert config.peft["use_rslora"] is True
    assert config.peft["target_modules"] == ["q_proj", "v_proj"]


def test_lists_and_schedules_reach_the_operator() -> None:
    config = settings("operator.layers=[2,3]", "operator.strength={start: 0.0, end: 0.5, steps: 9}")
    assert config.operator.layers == (2, 3)
    assert config.operator.strength == StrengthSchedule(start=0.0, end=0.5, steps=9)


@pytest.mark.parametrize(
    "words",
    [
        "trainer.max_steps=abc",
        "trainer.max_steps=0",
        "trainer.max_steps=-1 trainer.num_train_epochs=0",
        "trainer.learning_rate=fast",
        "trainer.learning_rate=-1",
        "trainer.bf16=5",
        "trainer.per_device_train_batch_size=0",
        "trainer.gradient_accumulation_steps=0",
        "trainer.output_dir=x",
        "trainer.seed=1",
        "trainer=null",
        "peft=lora peft.r=abc",
        "method.name=foo",
        "model.path=null",
        "model.path=123",
        "model.path=[a]",
        "model=custom",
        "model.dtype=5",
        "model.revision=123",
        "model.trust_remote_code=maybe",
        "model.parts=abc",
        "model.criterion=abc",
        "model.criterion.name=foo",
        "model.criterion.min_ratio=abc",
        "operator.rate=0",
        "operator.rate=1.5",
        "operator.rate=null",
        "operator.layers=[1,1]",
        "operator.layers=[-1]",
        "operator.strength=2",
        "operator.strength={start:0,end:1,step:3}",
        "detection.texts=5",
        "detection.chats=abc",
        "detection.examples=-1",
        "detection.example=1",
        "detection=null",
        "data.limit=0",
        "data=jsonl",
        "logger.mode=foo",
        "logger.name=foo",
        "paths.output_dir=null",
        "paths.run_dir=5",
        "experiment_name=null",
        "seed=abc",
        "seed=1.5",
        "dry_run=abc",
        "~seed",
        "~data",
        "~operator",
        "~trainer",
        "~peft",
        "seed=-1",
        "seed=4294967296",
        "seed=1000000000000000000000000000000",
        "data.seed=-1",
        "data.system=5",
        "model.adapter=twice",
        "logger=wandb logger.project=5",
        "++operator.strength={initial:0.999999999,scale:1e300}",
        "hydra.run.dir=/proc/nope",
        "hydra.sweep.dir=x",
        "a=b=c",
        "=3",
    ],
)
def test_a_value_that_makes_no_sense_is_one_message(words: str) -> None:
    message = refused(*words.split())
    assert message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/../../x", "x/..", "..", "n" * 300, "a/" + "n" * 300]
)
@pytest.mark.parametrize("key", ["experiment_name", "model.name"])
def test_a_run_stays_below_its_output_dir(key: str, name: str) -> None:
    message = refused(f"{key}={name}")
    assert ("255 bytes" if "nn" in name else f"{key} must name a folder below") in message
    assert len(message) < 300


@pytest.mark.parametrize("seed", ["-1", "4294967296", "x", "null"])
def test_the_seed_of_an_evaluation_is_one_that_every_library_takes(seed: str) -> None:
    assert "eval_seed must be" in refused(f"eval_seed={seed}", app="evaluate")


def test_a_place_of_300_characters_is_refused_and_a_deep_one_is_not(tmp_path: Path) -> None:
    for words in ("paths.output_dir=", "paths.run_dir=", "paths.output_dir=a/"):
        assert "at most 255 bytes" in refused(words + "n" * 300)
    config = settings("experiment_name=papers/first", f"paths.output_dir={tmp_path}")
    assert config.folder().parent == tmp_path / "papers" / "first"


def test_problems_are_reported_together() -> None:
    message = refused("operator.rate=0", "seed=abc", "trainer.max_step=3", "dry_run=7")
    assert all(word in message for word in ("rate", "seed", "max_steps", "dry_run"))


def test_remote_code_is_off_unless_the_config_turns_it_on() -> None:
    assert settings().model.load_options()["trust_remote_code"] is False
    on = settings("model.path=a/b", "model.trust_remote_code=true")
    assert on.model.load_options()["trust_remote_code"] is True


RESIZES = ((), ("model.resize=false",), ("model.resize=true",))


def test_resize_is_a_setting_of_every_model_and_changes_no_name_of_before() -> None:
    plain, off, on = (settings("model=llama3", *words) for words in RESIZES)
    assert on.model.resize and "resize" not in plain.identity()["model"]
    assert plain.folder() == off.folder() != on.folder()


def test_load_options_are_the_arguments_of_load_model() -> None:
    import inspect

    from wemask.checkpoint.pretrained import load_model

    model = ModelConfig(name="n", path="p")
    assert set(model.load_options()) <= set(inspect.signature(load_model).parameters)


# --- run folders ----------------------------------------------------------------------------------


def test_two_processes_agree_on_the_run_folder(tmp_path: Path) -> None:
    words = (f"paths.output_dir={tmp_path}", "peft=lora", "operator.layers=[2,3]", "seed=4")
    code = (
        "import sys; from wemask.settings.composition import compose;"
        "from wemask.settings.config import run_config;"
        "print(run_config(compose('train', sys.argv[1:])).folder())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, *reversed(words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert other.stdout.strip() == str(settings(*words).folder())


DIFFERENT = [
    "seed=1",
    "method=sft",
    "trainer.max_steps=5",
    "trainer.weight_decay=0.1",
    "operator.rate=0.5",
    "operator=official_train",
    "detection.examples=3",
    "operator=primary_tokens",
    "data.limit=3",
    "data.seed=1",
    "peft=lora",
    "model.dtype=bfloat16",
    "model.criterion.min_ratio=70",
]


@pytest.mark.parametrize("word", DIFFERENT)
def test_a_setting_that_changes_the_result_changes_the_folder(word: str) -> None:
    assert settings(word).folder() != settings().folder()


def test_all_those_folders_differ_from_each_other() -> None:
    assert len({settings(word).folder() for word in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    "word",
    ["logger=none", "logger.project=x", "dry_run=true", "paths.output_dir=elsewhere"],
)
def test_a_setting_that_changes_no_result_leaves_the_folder_name(word: str) -> None:
    assert settings(word).folder().name == settings().folder().name


def test_the_operator_is_no_setting_of_plain_sft() -> None:
    assert settings("method=sft", "operator.rate=0.5").folder() == settings("method=sft").folder()
    assert settings("method=base", "data.seed=5").folder() == settings("method=base").folder()


def test_an_explicit_run_folder_is_taken_and_not_passed_on() -> None:
    config = settings("paths.run_dir=here")
    assert config.folder() == Path("here")
    assert config.with_method("sft").folder() == settings("method=sft").folder()


def test_the_folder_names_experiment_model_method_and_seed(tmp_path: Path) -> None:
    folder = quick(tmp_path, "experiment_name=e", "seed=5", "method=sft").folder()
    assert folder.parent == tmp_path / "e"
    assert folder.name.rpartition("__")[0] == "tiny__sft__s5"
