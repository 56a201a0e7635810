"""Which model the options of a `wemask` command mean, and by which criterion it is detected."""

from pathlib import Path
from typing import Any

import typer

from wemask.cli import app
from wemask.settings.model_options import ModelOptions


def options(*words: str) -> ModelOptions:
    """What the command line says of the model."""
    commands: Any = typer.main.get_command(app)
    values = commands.commands["detect"].make_context("detect", list(words)).params
    del values["out"]
    return ModelOptions(**values)


def test_a_known_name_has_the_settings_of_its_file() -> None:
    config = options("--model", "tiny").config()
    assert config.criterion is not None
    assert config.criterion.name == "relative"
    assert config.dtype == "float32"


def test_a_folder_or_hub_name_is_any_other_model() -> None:
    config = options("--model", "ORG/NAME", "--dtype", "bfloat16", "--revision", "123").config()
    assert (config.path, config.name) == ("ORG/NAME", "NAME")
    assert (config.dtype, config.revision) == ("bfloat16", "123")
    assert config.criterion is None  # the model's own, which is not loaded here
    assert not config.trust_remote_code


def test_remote_code_only_on_request() -> None:
    assert options("--model", "a/b", "--trust-remote-code").config().trust_remote_code


def test_rows_are_added_only_on_request() -> None:
    assert [options("--model", "tiny", *w).config().resize for w in ([], ["--resize"])] == [0, 1]


def test_the_options_of_the_criterion() -> None:
    def arguments(*words: str) -> dict[str, Any]:
        chosen = options(*words)
        return chosen.detection_arguments(chosen.config())

    reading = {"texts": None, "chats": True}
    sun = arguments("--model", "tiny", "--criterion", "sun2024")
    assert sun == {**reading, "criterion": "sun2024"}
    own = arguments("--model", "tiny", "--min-jump", "2")["criterion"]
    assert (own.name, own.min_ratio, own.min_jump) == ("relative", 60, 2)
    assert arguments("--model", "a/b", "--min-ratio", "9") == {**reading, "min_ratio": 9}


def test_texts_and_chats_of_detection(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("One text.\n\nAnother.\n")
    words = ["--model", "tiny", "--calibration", str(tmp_path / "texts.txt"), "--no-chats"]
    chosen = options(*words)
    given = chosen.detection_arguments(chosen.config())
    assert (given["texts"], given["chats"]) == (["One text.", "Another."], False)
