"""Records -> examples for TRL's SFTTrainer, checked as a whole before anything is trained.

One example is `{"prompt": [messages], "completion": [one assistant message], "source": where}`, or,
where conversations train several assistant turns, `{"messages": [messages], "source": where}`; of
plain text, `{"text": str, "source": where}`. A message is `{"role": str, "content": str}`, with
what else a template may read (`messages.py`). `source` names the file and line for later messages.

    examples = load_examples(DataConfig(name="gsm8k", path="gsm8k_train.jsonl"))
"""

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import datasets
from datasets import config as datasets_settings
from datasets.exceptions import DatasetsError
from pydantic import BeforeValidator, Field

from wemask import files
from wemask.data import conversations, folders, layouts, messages, records
from wemask.data.cache_lock import waits_said
from wemask.data.conversations import Conversation
from wemask.data.features import features_of, fitting
from wemask.data.layouts import Layout
from wemask.data.messages import BadRecord, LeftOut, Message
from wemask.data.records import Record
from wemask.data.schema import Count, Seed, Text, settings
from wemask.embedded import problems
from wemask.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

Name = Literal["embedded", "gsm8k", "gsm8k_cot", "flan", "jsonl", "parquet"]
NAMES: tuple[str, ...] = get_args(Name)
Problems = Annotated[int, Field(ge=1, le=problems.MOST)]
MEMORY_ROWS = 100_000  # more than that are written to the datasets cache and memory-mapped
MEDIA = (datasets.Image, datasets.Audio, datasets.Video)
SHOWN = 5  # bad records that a message lists; it counts the others


def _share_or_file(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        good = 0 < value < 1
    else:
        good = value is None or (isinstance(value, str) and value.strip() != "")
    if not good:
        raise ConfigError(
            "data.validation must be a share of the training data, above 0 and below 1, or a file; "
            f"got {value!r}."
        )
    return value


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
    """Role (`layouts.ROLES`; question and answer are other names for prompt and completion) ->
    column, dotted where nested. Roles that are not named are recognised."""
    roles: Annotated[Mapping[str, str], BeforeValidator(messages.check_roles)] = field(
        default_factory=dict
    )
    """Other names of roles in messages -> system, user, assistant, tool or function_call."""
    turns: Literal["all", "last"] = "all"
    """Of a conversation, train every assistant turn (all) or only the final one (last)."""
    invalid: Literal["error", "drop"] = "error"
    """What to do with records that cannot be used: error, or drop (counted and named)."""
    system: str | None = None
    """System message put before conversations that have none."""
    limit: Count | None = None
    """Read only the first `limit` records."""
    validation: Annotated[str | float | None, BeforeValidator(_share_or_file)] = None
    """What is kept apart from training, for trainer.eval_strategy: a share (0.05) of the data,
    drawn by prompt (`validation.py`), or a file, folder or hub id of the same columns."""
    seed: Seed = 0
    """Seed of the embedded generator, and of the draw of data.validation."""
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

    def identity(self) -> dict[str, Any]:
        """The settings that a run's folder is named by: what 0.1 lacked only where it is set."""
        later = {"roles": {}, "validation": None}
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in later or v != later[k]}


def load_examples(config: DataConfig, like: datasets.Features | None = None) -> datasets.Dataset:
    """Read, check and convert all records that `config` names.

    Args:
        config: what to read, and how.
        like: columns of the examples that these belong to.

    Returns:
        Rows of `prompt`, `completion`, `source`; or of `messages`, `source` when at least one
        conversation trains several assistant turns; or of `text`, `source`. With `tools` where
        records have some.

    Raises:
        DataError: the source cannot be found, read or understood; or records cannot be used and
            `invalid` is "error"; or none is left.
    """
    source = _find_source(config)
    features = _check_all(source, config)
    if like is not None:
        features = fitting(features, like, source.label)
    arguments = {"source": source, "config": config, "features": features}
    if source.count <= MEMORY_ROWS:
        return datasets.Dataset.from_list(list(_examples(**arguments)), features=features)
    # The key makes the cache entry die with the data or the code that made it.
    code = [Path(module.__file__).read_bytes() for module in _MAKERS]
    parts = (source.key, source.label, config, features, code)
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


# All that decides what an example looks like.
_MAKERS: Any = (sys.modules[__name__], conversations, files, layouts, messages, records)


@dataclass(kw_only=True)
class _Source:
    """Records that can be read more than once, and how to read them."""

    label: str
    open: Callable[[], Iterator[Record]]
    layout: Layout
    key: object  # changes when the data change
    unused: Mapping[str, int] = field(default_factory=dict)  # column -> records that fill it
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
    filled = _filled((records.read_records(file) for file in files), config.limit)
    main = {role: name for role, name in config.columns.items() if role in layouts.MAIN}
    found = [
        layouts.recognise(list(counts), main, str(file))
        for file, counts in zip(files, filled, strict=False)
    ]
    odd = next((i for i, layout in enumerate(found) if layout.main != found[0].main), None)
    if odd is not None:
        raise DataError(
            f"Folder {path} mixes layouts: {files[0].name} ({found[0]}) and {files[odd].name} "
            f"({found[odd]}). Name one file: data.path={files[0]}."
        )
    counts = sum(filled, Counter())
    layout = layouts.recognise(list(dict.fromkeys(chain(*filled))), config.columns, str(path))
    needed = layout.top_level()

    def read() -> Iterator[Record]:
        for file in files:
            yield from records.read_records(file, needed)

    key = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    unused = layouts.unused(counts, layout)
    return _Source(label=str(path), open=read, layout=layout, key=key, unused=unused)


def _filled(files: Iterable[Iterator[Record]], limit: int | None) -> list[Counter[str]]:
    """Of each file, all columns and how many of its records fill them; of the first `limit`."""
    result: list[Counter[str]] = []
    left = limit
    for file in files:
        counts: Counter[str] = Counter()
        for _, fields in islice(file, left):
            left = None if left is None else left - 1
            for name, value in records.columns_of(fields):
                counts[name] += value not in (None, "", [], {})
        result += [counts] if counts else []
    return result


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
    media = [name for name, kind in table.features.items() if isinstance(kind, MEDIA)]
    rows = (("", cast(records.Fields, fields)) for fields in table.remove_columns(media))
    (counts,) = _filled([rows], config.limit)
    counts.update(dict.fromkeys(media, len(table)))  # unread: decoding them takes long
    layout = layouts.recognise(list(counts), config.columns, label)
    needed = table.select_columns(sorted(layout.top_level() & set(table.column_names)))

    def read() -> Iterator[Record]:
        for number, fields in enumerate(needed, 1):
            yield f"{label}, row {number}", cast(records.Fields, fields)

    unused = layouts.unused(counts, layout)
    return _Source(label=label, open=read, layout=layout, key=table._fingerprint, unused=unused)


def _check_all(source: _Source, config: DataConfig) -> datasets.Features:
    """Convert every record once; return the columns of the examples.

    Says what is not used, not trained or read in another way, each with its number of records.
    Raises `DataError` with the first bad records and their number, unless they are to be dropped.
    """
    bad: list[str] = []
    n_bad = 0
    notes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    several = tools = False
    for where, fields in islice(source.open(), config.limit):
        try:
            made = _convert(fields, source.layout, config)
        except BadRecord as problem:
            n_bad += 1
            if len(bad) < SHOWN:
                bad.append(f"  {where}: {problem}")
        except LeftOut as reason:
            left_out[str(reason)] += 1
        else:
            source.count += 1
            several |= made.several
            tools |= bool(made.tools)
            notes.update(made.notes)
    _report_notes(source, notes, left_out)
    if n_bad:
        _report_bad(source, bad, n_bad, config)
    if not source.count:
        raise DataError(f"{source.label}: every record says that it is not to be trained on.")
    logger.info("%d examples from %s (%s)", source.count, source.label, source.layout)
    return features_of(text=source.layout.text is not None, several=several, tools=tools)


def _report_notes(source: _Source, notes: Counter[str], left_out: Counter[str]) -> None:
    for reason, count in left_out.items():
        logger.warning(
            "%s: left out, not to be trained (%s): %d records", source.label, reason, count
        )
    for note, count in sorted(notes.items()):
        logger.warning("%s: %s: %d records", source.label, note, count)
    if names := [f"{name!r} ({count})" for name, count in source.unused.items()]:
        more = f" and {len(names) - layouts.LISTED} more" if len(names) > layouts.LISTED else ""
        logger.warning(
            "%s: columns that are not used, and how many records have them: %s%s. To use one, name "
            "its role: data.columns.input=COLUMN.",
            source.label,
            ", ".join(names[: layouts.LISTED]),
            more,
        )


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


def _examples(
    source: _Source, config: DataConfig, features: datasets.Features
) -> Iterator[dict[str, Any]]:
    for where, fields in islice(source.open(), config.limit):
        try:
            made = _convert(fields, source.layout, config)
        except (BadRecord, LeftOut):  # counted and named by _check_all
            continue
        example: dict[str, Any] = {}
        if made.text is not None:
            example["text"] = made.text
        elif "messages" in features:
            example["messages"] = made.messages
        else:
            turns = list(map(_without_flag, made.messages))
            example |= {"prompt": turns[:-1], "completion": turns[-1:]}
        if "tools" in features:
            example["tools"] = json.dumps(made.tools) if made.tools else None
        yield {**example, "source": where}


def _without_flag(message: Message) -> Message:
    """A turn of a prompt, in which nothing is trained anyway."""
    return {key: value for key, value in message.items() if key != "train"}


def _convert(fields: Mapping[str, Any], layout: Layout, config: DataConfig) -> Conversation:
    return conversations.convert(
        fields,
        layout,
        system=config.system,
        last_turn_only=config.turns == "last",
        roles=config.roles,
    )
