import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_support import REPOSITORY, quick, settings

from wemask.composition import compose, conf_dir, normalise, train_overrides
from wemask.config import METHODS, ModelConfig, digest
from wemask.errors import ConfigError
from wemask.evaluation import tasks_from_config
from wemask.operator import StrengthSchedule, WeMaskConfig

CONF = REPOSITORY / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def refused(*overrides: str, app: str = "train") -> str:
    with pytest.raises(ConfigError) as error:
        settings(*overrides, app=app)
    return str(error.value)


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


STUDIES = ("controls", "controls_sft", "dose", "seeds")


def test_the_experiments_are_studies_and_papers() -> None:
    assert [n for n in options("experiment") if n not in STUDIES] == ["paper_gsm8k"]


@pytest.mark.parametrize("name", [n for n in options("experiment") if n not in STUDIES])
def test_every_paper_composes_and_wins_over_the_model(name: str) -> None:
    import yaml

    values = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    config = settings(f"experiment={name}")
    assert config.experiment == values["experiment_name"]
    assert {key: config.trainer[key] for key in values["trainer"]} == values["trainer"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_a_sweep_over_known_arms(name: str) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from wemask.arms import ARMS

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("evaluate", [f"experiment={name}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert list(cfg.arms) != ["base", "training_free", "sft", "wemask_sft"]
    assert set(cfg.arms) <= set(ARMS)
    for key, values in cfg.hydra.sweeper.params.items():
        for value in values.split(","):
            settings(f"{key}={value}", app="evaluate")


@pytest.mark.parametrize("name", options("tasks"))
def test_every_task_file_becomes_settings(name: str) -> None:
    cfg = compose("evaluate", [f"tasks=[{name}]"])
    tasks = tasks_from_config({key: dict(value) for key, value in cfg.tasks.items()})
    both = ["xstest_safe", "xstest_unsafe"]
    assert [task.name for task in tasks] == (both if name == "xstest" else [name])


def test_evaluate_composes_the_same_run_as_train() -> None:
    words = ("model=tiny", "method=sft", "peft=lora", "trainer.max_steps=7", "seed=3")
    assert settings(*words, app="evaluate") == settings(*words)


def test_debug_fast_shrinks_the_run() -> None:
    assert settings("debug=fast").trainer["max_steps"] <= 10


def test_the_configs_are_those_of_the_checkout() -> None:
    assert conf_dir() == CONF


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


def test_a_model_path_alone_chooses_custom_without_the_settings_of_tiny() -> None:
    config = settings("model.path=ORG/NAME")
    plain = settings("model=llama3")
    assert (config.model.path, config.model.name) == ("ORG/NAME", "NAME")
    assert config.model.criterion is None  # what the model's own config says
    assert config.operator == plain.operator
    assert config.trainer == plain.trainer


def test_a_model_path_beside_a_model_changes_only_the_path() -> None:
    config = settings("model=tiny", "model.path=ORG/NAME")
    assert config.model == dataclasses.replace(settings().model, path="ORG/NAME")


def test_lists_and_schedules_reach_the_operator() -> None:
    config = settings("operator.layers=[2,3]", "operator.strength={start: 0.0, end: 0.5, steps: 9}")
    assert config.operator.layers == (2, 3)
    assert config.operator.strength == StrengthSchedule(start=0.0, end=0.5, steps=9)


def test_normalise_is_idempotent() -> None:
    words = ["model.path=a/b", "trainer.max_steps=3", "peft.r=2", "tasks=[gsm8k,arc_easy]", "x=1"]
    once = normalise(words)
    assert normalise(once) == once
    assert once == [
        "model=custom",
        "model.path=a/b",
        "++trainer.max_steps=3",
        "++peft.r=2",
        "tasks=[gsm8k]",
        "++tasks.arc_easy.path=null",
        "x=1",
    ]


def test_a_sweep_may_be_asked_for_anywhere() -> None:
    """Hydra's parser refuses words on both sides of a flag; model=custom would be such a word."""
    for words in (
        ["model.path=folder", "-m", "seed=0,1"],
        ["-m", "model.path=folder", "seed=0,1"],
        ["model.path=folder", "seed=0,1", "-m"],
    ):
        assert normalise(words) == ["-m", "model=custom", "model.path=folder", "seed=0,1"]


def test_train_overrides_keep_what_decides_the_run_and_nothing_else() -> None:
    words = [
        *("model=tiny", "++trainer.max_steps=4", "seed=2", "operator.layers=[2,3]"),
        *("tasks=[gsm8k]", "++tasks.arc_easy.path=null", "tasks.gsm8k.path=x", "arms=[base]"),
        *("limit=8", "batch_size=2", "train_missing=false", "method=sft"),
        *("paths.run_dir=x", "paths.output_dir=y", "data.limit=5"),
    ]
    assert train_overrides(words) == [
        *("model=tiny", "trainer.max_steps=4", "seed=2", "operator.layers=[2,3]"),
        *("paths.output_dir=y", "data.limit=5"),
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer.max_step=5"], ["trainer.max_step", "'max_steps'"]),
        (["trainer.learning_rat=1"], ["'learning_rate'"]),
        (["peft=lora", "peft.lora_alfa=1"], ["LoraConfig", "'lora_alpha'"]),
        (["peft.r=8"], ["peft=lora"]),
        (["operator.rates=1"], ["'operator.rate'"]),
        (["operator.layers=afterme"], ["'after_me'"]),
        (["operator=papr"], ["'paper'"]),
        (["model=llama"], ["'llama3'", "model.path="]),
        (["model.pat=x"], ["'model.path'"]),
        (["method=wemaks"], ["'wemask'"]),
        (["data=jsnl"], ["'jsonl'"]),
        (["data=gsm8k", "data.colums.prompt=q"], ["'data.columns.prompt'"]),
        (["experiment=paper_gsm8"], ["'paper_gsm8k'"]),
        (["debug=fats"], ["'fast'"]),
        (["seeed=1"], ["'seed'"]),
        (["+seeed=1"], ["'seed'"]),
        (["++dryrun=true"], ["'dry_run'"]),
        (["+paths.outputdir=x"], ["'output_dir'"]),
        (["+logger.projct=x"], ["'project'"]),
        (["logger=tensorboard"], ["none, wandb"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_unknown_key_or_value_names_the_nearest(words: list[str], expected: list[str]) -> None:
    message = refused(*words)
    assert all(part in message for part in expected), message


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
        "a=b=c",
        "=3",
    ],
)
def test_a_value_that_makes_no_sense_is_one_message(words: str) -> None:
    message = refused(*words.split())
    assert message
    assert "Traceback" not in message


def test_problems_are_reported_together() -> None:
    message = refused("operator.rate=0", "seed=abc", "trainer.max_step=3", "dry_run=7")
    assert all(word in message for word in ("rate", "seed", "max_steps", "dry_run"))


def test_custom_without_a_path_says_what_to_type() -> None:
    assert "model.path=VALUE" in refused("model=custom")


def test_remote_code_is_off_unless_the_config_turns_it_on() -> None:
    assert settings().model.load_options()["trust_remote_code"] is False
    on = settings("model.path=a/b", "model.trust_remote_code=true")
    assert on.model.load_options()["trust_remote_code"] is True


def test_load_options_are_the_arguments_of_load_model() -> None:
    import inspect

    from wemask.loading import load_model

    model = ModelConfig(name="n", path="p")
    assert set(model.load_options()) <= set(inspect.signature(load_model).parameters)


# --- run folders ----------------------------------------------------------------------------------


def test_two_processes_agree_on_the_run_folder(tmp_path: Path) -> None:
    words = (f"paths.output_dir={tmp_path}", "peft=lora", "operator.layers=[2,3]", "seed=4")
    code = (
        "from wemask.composition import compose; from wemask.config import run_config; import sys;"
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON))
def test_the_digest_does_not_depend_on_the_order_of_keys(values: dict[str, Any]) -> None:
    assert digest(values) == digest(dict(reversed(values.items())))
    assert digest(values) != digest({**values, "one more key": 1})
