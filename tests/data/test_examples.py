import json
import logging
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import EXPECTED, GSM, assistant, load, user, write
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from wemask.data import examples as data
from wemask.data.examples import DataConfig, load_examples
from wemask.data.layouts import FLAGS, IRRELEVANT, ROLES
from wemask.embedded import problems
from wemask.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def test_all_bad_records_are_counted_and_the_first_ones_shown(tmp_path):
    bad = [{"question": "", "answer": "a"}] * 8
    path = write(tmp_path / "x.jsonl", [*GSM, *bad])
    with pytest.raises(
        DataError, match=r"8 of 13 records(.|\n)*line 10: (.|\n)*and 3 more"
    ) as error:
        load(path)
    assert str(error.value).count("is empty") == data.SHOWN


def test_dropped_records_are_counted_and_named_in_the_log(tmp_path, caplog):
    path = write(tmp_path / "x.jsonl", [GSM[0], {"question": "", "answer": "a"}, GSM[1]])
    with caplog.at_level(logging.WARNING):
        examples = load(path, invalid="drop")
    assert examples["source"][:] == [f"{path}, line 1", f"{path}, line 3"]
    assert "1 of 3 records" in caplog.text
    assert "line 2: prompt (column 'question') is empty" in caplog.text


def test_nothing_left_is_an_error_even_when_dropping(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"question": "", "answer": "a"}])
    with pytest.raises(DataError, match="None is left"):
        load(path, invalid="drop")


def test_limit_reads_only_the_first_records(tmp_path):
    path = write(tmp_path / "x.jsonl", [*GSM, {"question": ""}])
    assert len(load(path, limit=3)) == 3
    with pytest.raises(DataError):
        load(path, limit=6)


def test_an_unreachable_hub_says_what_was_sought_and_what_to_type(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"ORG/NAME: no such file.*OfflineMode.*data.path=FILE"):
        load("ORG/NAME")


def test_a_hub_dataset_is_read_like_a_file(monkeypatch):
    calls = []

    def fake(path: str, **kwargs) -> datasets.Dataset:
        calls.append((path, kwargs))
        return datasets.Dataset.from_list([{**row, "other": 1} for row in GSM])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    examples = load("openai/gsm8k", hub_config="main", split="test", hub_revision="e53f048")
    assert calls == [("openai/gsm8k", {"name": "main", "split": "test", "revision": "e53f048"})]
    assert examples["source"][4] == "openai/gsm8k [test], row 5"
    assert examples["completion"][4] == [assistant("#### 5")]


def test_large_data_are_memory_mapped_and_never_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "x.jsonl", [*GSM, {"question": ""}])
    small = load(path, invalid="drop")
    monkeypatch.setattr(data, "MEMORY_ROWS", 2)
    large = load(path, invalid="drop")
    assert not small.cache_files
    assert large.cache_files
    assert large.to_list() == small.to_list()
    assert large.features == small.features
    assert load(path, invalid="drop")._fingerprint == large._fingerprint
    write(path, [GSM[0], GSM[0], {"question": "new", "answer": "new"}])
    assert load(path, invalid="drop")["prompt"][2] == [user("new")]  # the same settings as above


def test_embedded_problems_come_as_they_are_generated():
    examples = load_examples(DataConfig(n_train=30, seed=3))
    items = problems.generate(30, split="train", family="sft", seed=3)
    assert examples["prompt"][:] == [[user(item["question"])] for item in items]
    assert examples["completion"][:] == [[assistant(item["answer"])] for item in items]
    assert len(load_examples(DataConfig(split="test", n_test=7, family="pretrain"))) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "gsm8kk", "path": "x"}, "Did you mean 'gsm8k'"),
        ({"name": "gsm8k"}, "data=gsm8k needs data.path="),
        ({"name": "embedded", "path": "x.jsonl"}, "has no data.path"),
        ({"split": "tain"}, "Did you mean 'train'"),
        ({"family": "stf"}, "Did you mean 'sft'"),
        ({"turns": "lst"}, "Did you mean 'last'"),
        ({"invalid": "dorp"}, "Did you mean 'drop'"),
        ({"limit": 0}, "data.limit must be at least 1, got 0"),
        ({"limit": True}, "data.limit must be"),
        ({"n_train": 2.5}, "data.n_train must be"),
        ({"n_train": 10**12}, r"data.n_train must be at most 1(e\+06|000000), got 1000000000000"),
        ({"limit": 10**30}, "data.limit must be at most"),
        ({"seed": "a"}, "data.seed must be"),
        ({"columns": {"promt": "x"}}, r"data.columns.promt.*Did you mean 'prompt'"),
        ({"columns": {"prompt": 3}}, "must be a column name, got 3"),
        ({"columns": {"prompt": "a", "question": "b"}}, "prompt is already a"),
        ({"columns": {"messages": "a", "prompt": "b"}}, "not both"),
        ({"columns": "prompt"}, "must map roles to columns"),
    ],
)
def test_wrong_settings_name_the_nearest(values, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**values)


def test_all_wrong_settings_are_reported_together():
    with pytest.raises(ConfigError) as error:
        DataConfig(name="nothing", limit=-1, columns={"x": "y"})
    assert [word in str(error.value) for word in ("name", "limit", "columns.x")] == [True] * 3


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_config(preset):
    with initialize_config_dir(str(CONF / "data"), version_base="1.3"):
        values = OmegaConf.to_container(compose(preset))
    assert values["name"] == preset
    assert set(values) <= {field.name for field in fields(DataConfig)}
    if preset != "embedded":
        values["path"] = values["path"] or "x.jsonl"
        assert set(values["columns"]) == set(ROLES)
    DataConfig(**values)
    assert sorted(PRESETS) == sorted(data.NAMES)


PRESET_ROWS = {
    "gsm8k": {"question": "q", "answer": "a"},
    "gsm8k_cot": {"prompt": [user("q")], "extra_info": {"response": "a", "answer": "no"}},
    "flan": {"inputs": "q", "targets": "a", "task": "t"},
    "jsonl": {"instruction": "q", "output": "a"},
    "parquet": {"question": "q", "answer": "a"},
}


@pytest.mark.parametrize("preset", PRESET_ROWS)
def test_presets_read_their_layout(tmp_path, preset):
    pq.write_table(pa.Table.from_pylist([PRESET_ROWS[preset]]), tmp_path / "x.parquet")
    with initialize_config_dir(str(CONF / "data"), version_base="1.3"):
        values = OmegaConf.to_container(compose(preset, [f"path={tmp_path}/x.parquet"]))
    example = load_examples(DataConfig(**values))[0]
    assert {key: example[key] for key in EXPECTED} == EXPECTED


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_survives_the_way_through_a_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    write(path, [{"question": q, "answer": a} for q, a in rows])
    examples = load(path)
    assert [prompt[0]["content"] for prompt in examples["prompt"]] == [q for q, _ in rows]
    assert [answer[0]["content"] for answer in examples["completion"]] == [a for _, a in rows]


# --- nothing is dropped in silence ----------------------------------------------------------------

USED = ("instruction", "input", "output", "system", "history", "reasoning")
UNKNOWN = ("rationale", "notes", "chosen", "Kommentar")
NEUTRAL = ("id", "source", "category", "prompt_id")


def filled(name: str, number: int) -> object:
    """A value that tells from which column of which record it is."""
    text = f"<{name} {number}>"
    return [[f"<q {text}>", text]] if name == "history" else text


RECORD = st.fixed_dictionaries(
    {"instruction": st.just(True), "output": st.just(True)},
    optional={
        **{name: st.booleans() for name in (*USED[1:2], *USED[3:], *UNKNOWN, *NEUTRAL)},
        **{name: st.sampled_from([True, False, None]) for name in FLAGS},
    },
)


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(RECORD, min_size=1, max_size=6))
def test_every_field_is_used_or_irrelevant_or_named_with_a_count(tmp_path_factory, shapes):
    rows = [
        {name: v if name in FLAGS else filled(name, i) if v else "" for name, v in shape.items()}
        for i, shape in enumerate(shapes)
    ]
    forbidden = [i for i, row in enumerate(rows) if False in [row.get(name) for name in FLAGS]]
    path = write(tmp_path_factory.mktemp("fields") / "x.jsonl", rows)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    data.logger.addHandler(handler)
    try:
        if len(forbidden) == len(rows):
            with pytest.raises(DataError, match="every record says"):
                load(path)
            return
        examples = load(path)
    finally:
        data.logger.removeHandler(handler)
    log = "\n".join(said)
    # obeyed, and counted
    kept = [i for i in range(len(rows)) if i not in forbidden]
    assert examples["source"][:] == [f"{path}, line {i + 1}" for i in kept]
    assert sum(map(int, re.findall(r"not to be trained .*: (\d+) records", log))) == len(forbidden)
    # used, whichever record has it
    for i, example in zip(kept, examples, strict=True):
        text = json.dumps(example)
        missing = [n for n in USED if rows[i].get(n) and f"<{n} {i}>" not in text]
        assert not missing
        assert not any(f"<{name} " in text for name in (*UNKNOWN, *NEUTRAL))
    # named, with their number
    counts = Counter(name for row in rows for name in UNKNOWN if row.get(name))
    assert dict(re.findall(r"'(\w+)' \((\d+)\)", log)) == {n: str(c) for n, c in counts.items()}
    assert not any(f"'{name}'" in log for name in NEUTRAL)


def test_what_is_irrelevant_is_not_what_anything_else_reads():
    from wemask.data import layouts

    known = {
        *layouts.PROMPTS,
        *layouts.COMPLETIONS,
        *layouts.CONVERSATIONS,
        *FLAGS,
        "input",
        "text",
    }
    assert not IRRELEVANT & {*known, *layouts.CONTEXT, *sum(layouts.EXTRAS.values(), ())}


def test_columns_are_those_of_all_records_and_of_all_files(tmp_path, caplog):
    rows = [{"instruction": "q", "output": "a"}, {"instruction": "q", "input": "i", "output": "a"}]
    assert load(write(tmp_path / "x.jsonl", rows))["prompt"][1] == [user("q\n\ni")]
    for number, row in enumerate(rows):
        write(tmp_path / f"{number}.jsonl", [row])
    assert load(tmp_path)["prompt"][1] == [user("q\n\ni")]
    pq.write_table(
        pa.Table.from_pylist([{**rows[1], "meta": {"mood": "m"}}]), tmp_path / "y.parquet"
    )
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "y.parquet")
    assert "'meta' (1)" in caplog.text


def test_tools_are_a_column_of_their_own(tmp_path):
    chat = {"messages": [user("q"), assistant("a")]}
    examples = load(write(tmp_path / "x.jsonl", [chat, {**chat, "tools": [{"name": "f"}]}]))
    assert examples["tools"][:] == [None, '[{"name": "f"}]']


def test_the_settings_that_0_1_lacked_name_no_folder_at_their_default():
    names = {"name", "path", "split", "hub_config", "hub_revision", "columns", "turns", "invalid"}
    names |= {"system", "limit", "seed", "n_train", "n_test", "family"}
    assert set(DataConfig().identity()) == names
    changed = DataConfig(validation=0.5, roles={"x": "user"}).identity()
    assert set(changed) == {*names, "validation", "roles"}
