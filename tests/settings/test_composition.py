"""Words of a command line -> one composed config; what it does not know is told."""

import dataclasses

import pytest
from run_support import CONF, options, refused, settings

from wemask.settings.composition import conf_dir, normalise, train_overrides

STUDIES = ("controls", "controls_sft", "dose", "seeds")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_a_sweep_over_known_arms(name: str) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from wemask.evaluate.arms import ARMS

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("evaluate", [f"experiment={name}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert list(cfg.arms) != ["base", "training_free", "sft", "wemask_sft"]
    assert set(cfg.arms) <= set(ARMS)
    for key, values in cfg.hydra.sweeper.params.items():
        for value in values.split(","):
            settings(f"{key}={value}", app="evaluate")


def test_evaluate_composes_the_same_run_as_train() -> None:
    words = ("model=tiny", "method=sft", "peft=lora", "trainer.max_steps=7", "seed=3")
    assert settings(*words, app="evaluate") == settings(*words)


def test_the_configs_are_those_of_the_checkout() -> None:
    assert conf_dir() == CONF


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
        *("limit=8", "batch_size=2", "train_missing=false", "eval_seed=3", "method=sft"),
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


def test_custom_without_a_path_says_what_to_type() -> None:
    assert "model.path=VALUE" in refused("model=custom")


def test_the_experiments_are_studies_and_papers() -> None:
    assert [n for n in options("experiment") if n not in STUDIES] == ["paper_gsm8k"]


@pytest.mark.parametrize("name", [n for n in options("experiment") if n not in STUDIES])
def test_every_paper_composes_and_wins_over_the_model(name: str) -> None:
    import yaml

    values = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    config = settings(f"experiment={name}")
    assert config.experiment == values["experiment_name"]
    assert {key: config.trainer[key] for key in values["trainer"]} == values["trainer"]
