"""Records -> examples for TRL's SFTTrainer, checked as a whole before anything is trained.

One example is `{"prompt": [messages], "completion": [one assistant message], "source": where}`, or,
where conversations have several assistant turns, `{"messages": [messages], "source": where}`.
A message is `{"role": str, "content": str}`. `source` names the file and line for later messages.

    examples = load_examples(DataConfig(name="gsm8k", path="gsm8k_train.jsonl"))
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import datasets
from datasets import config as datasets_settings
from datasets.exceptions import DatasetsError
from pydantic import BeforeValidator, Field

from wemask.data import folders, layouts, records
from wemask.data.cache_lock import waits_said
from wemask.data.layouts import BadRecord, Layout
from wemask.data.records import Record
from wemask.data.schema import Count, Text, settings
from wemask.embedded import problems
from wemask.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

Name = Literal["embedded", "gsm8k", "gsm8k_cot", "flan", "jsonl", "parquet"]
NAMES: tuple[str, ...] = get_args(Name)
Problems = Annotated[int, Field(ge=1, le=problems.MOST)]
MEMORY_ROWS = 100_000  # more than that are written to the datasets cache and memory-mapped
SHOWN = 5  # bad records that a message lists; it counts the others

MESSAGE = {"role": datasets.Value("string"), "content": datasets.Value("string")}
PAIR_FEATURES = datasets.Features(
    {
        "prompt": datasets.List(MESSAGE),
        "completion": datasets.List(MESSAGE),
        "source": datasets.Value("string"),
    }
)
CHAT_FEATURES = datasets.Features(
    {"messages": datasets.List(MESSAGE), "source": datasets.Value("string")}
)


@settings("data")
class DataConfig:
    """What to train on. conf/data/*.yaml hold one of these each.

    Raises:
        ConfigError: every problem of the given values, together.
    """

    name: Name = "embedded"
    """embedded (generated word problems) | gsm8k | gsm8k_cot | flan | jsonl | parquet."""
    path: Text | None = None
    """A file, a folder of files, or a hub id (ORG/NAME). None only for embedded data."""
    split: Text = "train"
    """Split of a hub dataset, of a folder with split words in its file names, or embedded."""
    hub_config: str | None = None
    """Named configuration of a hub dataset (`main` for openai/gsm8k); unused for local files."""
    hub_revision: str | None = None
    """Commit or tag of a hub dataset, to pin it; unused for local files."""
    columns: Annotated[Mapping[str, str | None], BeforeValidator(layouts.check_columns)] = field(
        default_factory=dict
    )
    """Role (prompt, completion, input, messages; question and answer are other names for the first
    two) -> column, dotted where nested. Roles that are not named are recognised."""
    turns: Literal["all", "last"] = "all"
    """Of a conversation, train every assistant turn (all) or only the final one (last)."""
    invalid: Literal["error", "drop"] = "error"
    """What to do with records that cannot be used: error, or drop (counted and named)."""
    system: str | None = None
    """System message put before conversations that have none."""
    limit: Count | None = None
    """Read only the first `limit` records."""
    seed: int = 0
    """Seed of the embedded generator."""
    n_train: Problems = 4000
    """Embedded problems in split=train."""
    n_test: Problems = 500
    """Embedded problems in split=test."""
    family: problems.Family = "sft"
    """Embedded family: sft (what fine-tuning teaches) | pretrain (what `tiny` knows)."""

    def __post_init__(self) -> None:
        if self.name != "embedded" and self.path is None:
            raise ConfigError(
                f"data={self.name} needs data.path=FILE, a folder or a hub id (ORG/NAME)."
            )
        if self.name == "embedded" and self.path is not None:
            raise ConfigError(
                "data=embedded is generated and has no data.path: type data=jsonl or data=parquet "
                f"with data.path={self.path}."
            )
        if self.name == "embedded" and self.split not in problems.SPLITS:
            raise ConfigError(
                f"data.split of data=embedded is one of {', '.join(problems.SPLITS)}, got "
                f"{self.split!r}.{nearest(self.split, problems.SPLITS)}"
            )


def load_examples(config: DataConfig) -> datasets.Dataset:
    """Read, check and convert all records that `config` names.

    Returns:
        Rows of `prompt`, `completion`, `source`; or of `messages`, `source` when at least one
        conversation has several assistant turns and `turns` is "all".

    Raises:
        DataError: the source cannot be found, read or understood; or records cannot be used and
            `invalid` is "error"; or none is left.
    """
    source = _find_source(config)
    several = _check_all(source, config)
    features = CHAT_FEATURES if several else PAIR_FEATURES
    arguments = {"source": source, "config": config, "several": several}
    if source.count <= MEMORY_ROWS:
        return datasets.Dataset.from_list(list(_examples(**arguments)), features=features)
    # The key makes the cache entry die with the data or the code that made it.
    code = [Path(file).read_bytes() for file in (__file__, layouts.__file__, records.__file__)]
    parts = (source.key, source.label, config, several, code)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    try:
        with waits_said(logger.warning):
            return datasets.Dataset.from_generator(
                _examples, features=features, gen_kwargs=arguments, fingerprint=key
            )
    except (OSError, DatasetsError) as error:
        raise DataError(
            f"{source.count} examples do not fit the cache {datasets_settings.HF_DATASETS_CACHE}: "
            f"{error.__cause__ or error}. Type HF_DATASETS_CACHE=FOLDER before the command."
        ) from error


@dataclass(kw_only=True)
class _Source:
    """Records that can be read more than once, and how to read them."""

    label: str
    open: Callable[[], Iterator[Record]]
    layout: Layout
    key: object  # changes when the data change
    count: int = 0  # usable records; known after the check


def _find_source(config: DataConfig) -> _Source:
    if config.name == "embedded":
        return _embedded(config)
    name = str(config.path)
    path, parts = Path(name).expanduser(), name.split("/")
    hub_id = len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts)
    if hub_id and not path.exists() and not records.has_data_extension(name):
        return _hub(config)
    return _local(path, config)


def _embedded(config: DataConfig) -> _Source:
    n = config.n_train if config.split == "train" else config.n_test

    def read() -> Iterator[Record]:
        split = cast(problems.Split, config.split)  # checked by DataConfig
        for item in problems.generate(n, split=split, family=config.family, seed=config.seed):
            yield f"embedded problem {item['id']}", dict(item)

    layout = Layout(prompt="question", completion="answer")
    return _Source(label="the embedded problems", open=read, layout=layout, key=n)


def _local(path: Path, config: DataConfig) -> _Source:
    files = folders.find_files(path, config.split)
    found = []
    for file in files:
        _, fields = next(records.read_records(file))
        found.append(layouts.recognise(records.column_names(fields), config.columns, str(file)))
    odd = next((i for i, layout in enumerate(found) if layout != found[0]), None)
    if odd is not None:
        raise DataError(
            f"Folder {path} mixes layouts: {files[0].name} ({found[0]}) and {files[odd].name} "
            f"({found[odd]}). Name one file: data.path={files[0]}."
        )
    needed = found[0].top_level()

    def read() -> Iterator[Record]:
        for file in files:
            yield from records.read_records(file, needed)

    key = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return _Source(label=str(path), open=read, layout=found[0], key=key)


def _hub(config: DataConfig) -> _Source:
    label = f"{config.path} [{config.split}]"
    try:
        with waits_said(logger.warning):
            table = datasets.load_dataset(
                str(config.path),
                name=config.hub_config,
                split=config.split,
                revision=config.hub_revision,
            )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data.path={config.path}: no such file or folder here, and as a dataset of the hub "
            f"(split {config.split!r}) it could not be had: {reason}. "
            f"With a file at hand, type data={config.name} data.path=FILE."
        ) from error
    if not isinstance(table, datasets.Dataset) or not len(table):
        raise DataError(f"{label} is empty: expected at least one record.")
    names = records.column_names(table[0])
    layout = layouts.recognise(names, config.columns, label)
    needed = table.select_columns(sorted(layout.top_level() & set(table.column_names)))

    def read() -> Iterator[Record]:
        for number, fields in enumerate(needed, 1):
            yield f"{label}, row {number}", cast(records.Fields, fields)

    return _Source(label=label, open=read, layout=layout, key=table._fingerprint)


def _check_all(source: _Source, config: DataConfig) -> bool:
    """Convert every record once; return whether any trains several turns.

    Raises `DataError` with the first bad records and their number, unless they are to be dropped.
    """
    bad: list[str] = []
    total = n_bad = 0
    several = False
    for where, fields in islice(source.open(), config.limit):
        total += 1
        try:
            several |= _convert(fields, source.layout, config)[1]
        except BadRecord as problem:
            n_bad += 1
            if len(bad) < SHOWN:
                bad.append(f"  {where}: {problem}")
    source.count = total - n_bad
    if n_bad:
        _report_bad(source, bad, n_bad, config)
    logger.info("%d examples from %s (%s)", source.count, source.label, source.layout)
    return several


def _report_bad(source: _Source, bad: list[str], n_bad: int, config: DataConfig) -> None:
    total = source.count + n_bad
    what = f"{n_bad} of {total} records of {source.label} cannot be used ({source.layout}):\n"
    what += "\n".join(bad) + (f"\n  and {n_bad - len(bad)} more" if n_bad > len(bad) else "")
    if not source.count:
        raise DataError(f"{what}\nNone is left to train on.")
    if config.invalid == "error":
        raise DataError(
            f"{what}\nCorrect them, or type data.invalid=drop to train on the other {source.count}."
        )
    logger.warning("%s\nDropped (data.invalid=drop): training on %d.", what, source.count)


def _examples(source: _Source, config: DataConfig, several: bool) -> Iterator[dict[str, Any]]:
    for where, fields in islice(source.open(), config.limit):
        try:
            messages, _ = _convert(fields, source.layout, config)
        except BadRecord:  # counted and named by _check_all
            continue
        if several:
            yield {"messages": messages, "source": where}
        else:
            yield {"prompt": messages[:-1], "completion": messages[-1:], "source": where}


def _convert(
    fields: Mapping[str, Any], layout: Layout, config: DataConfig
) -> tuple[list[layouts.Message], bool]:
    return layouts.convert(
        fields, layout, system=config.system, last_turn_only=config.turns == "last"
    )
