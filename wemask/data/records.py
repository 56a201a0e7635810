"""Data files -> records, each with the place it came from: `("gsm8k.jsonl, line 17", {...})`.

JSON lines, JSON, CSV (plain or gzipped), Parquet and Arrow, chosen by file extension and read as a
stream. Whatever is wrong with a file becomes one `DataError` with the file, the line and what was
expected; whatever is read otherwise than it stands there is said once. Nothing is ever unpickled.
"""

import csv
import gzip
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from wemask.errors import DataError
from wemask.files import parse_json, regular

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
Record = tuple[str, Fields]
"""Where it stands (for messages), and its columns."""

LONGEST = 2**26  # characters of one line or CSV field
LARGEST = 2**30  # characters of a JSON file that is one list or object, which is read as a whole
TABLE_ROWS = 64  # of a table in memory at once: a value may be large, and packed well
LONE = re.compile(r"[\ud800-\udfff]")
LONE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_records(path: Path, columns: set[str] | None = None) -> Iterator[Record]:
    """Stream the records of one file.

    Args:
        path: a file whose extension is in `READERS`, perhaps followed by `.gz`.
        columns: top-level columns that are needed; of a table, no others are read.

    Raises:
        DataError: unknown extension, no regular file, unreadable, empty, malformed, or not UTF-8.
    """
    reader = READERS[extension(path)]
    regular(path)
    empty = True
    with _reading(path):
        for record in reader(path, columns):
            empty = False
            yield record
    if empty:
        raise DataError(f"{path} is empty: expected at least one record.")


def extension(path: Path) -> str:
    """Return which of `READERS` reads a file; `.gz` does not matter.

    Raises:
        DataError: none does.
    """
    found = Path(path.name.lower().removesuffix(".gz")).suffix
    if found not in READERS:
        raise DataError(
            f"{path} has no extension that can be read: expected {', '.join(READERS)}. "
            "Rename it if it holds one of these formats."
        )
    return found


def has_data_extension(path: str | Path) -> bool:
    """Whether `path` ends like a data file, so that it cannot be meant as a hub id."""
    return str(path).lower().removesuffix(".gz").endswith(tuple(READERS))


def columns_of(fields: Fields) -> Iterator[tuple[str, Any]]:
    """All columns of a record with what stands there, nested ones dotted: `extra_info.response`."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from ((f"{name}.{inner}", of_inner) for inner, of_inner in columns_of(value))
        else:
            yield name, value


def column_names(fields: Fields) -> list[str]:
    """The names alone."""
    return [name for name, _ in columns_of(fields)]


def is_one_object(path: Path) -> bool:
    """Whether a .json file holds one object and no list: of a folder, rather what describes it.

    Raises:
        DataError: it cannot be read.
    """
    if extension(path) != ".json":
        return False
    with _reading(path):
        value = None if _has_lines(path) else _document(path)
        return isinstance(value, dict) and _listed(value, path)[0] is value


def _json_lines(path: Path, columns: set[str] | None) -> Iterator[Record]:
    replaced = 0
    try:
        for number, line in _text_lines(path):
            if line.strip():
                where = f"{path}, line {number}"
                fields, lone = _parsed(line, where, dict)
                replaced += lone
                yield where, fields
    finally:  # also where no more are wanted
        _say_replaced(path, replaced)


def _json_file(path: Path, columns: set[str] | None) -> Iterator[Record]:
    """A list of records, an object that holds them, or, as in many such files, one per line."""
    if _has_lines(path):
        yield from _json_lines(path, columns)
        return
    for number, item in enumerate(_listed(_document(path), path), 1):
        where = f"{path}, item {number}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {type(item).__name__}.")
        yield where, item


def _has_lines(path: Path) -> bool:
    """Whether a whole object stands in the first of several lines."""
    with _open(path) as handle:
        first, second = _filled_line(handle), _filled_line(handle)
    try:
        return bool(second and parse_json(first, str(path)))
    except DataError:
        return False


def _document(path: Path) -> Any:
    """The one JSON value of a file."""
    with _open(path) as handle:
        text = handle.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise DataError(
            f"{path} has more than {LARGEST:,} characters and is no file of JSON lines. Write one "
            f"record in each line: jq -c '.[]' {path.name} > {path.stem}.jsonl"
        )
    if not text.strip():
        return []
    value, lone = _parsed(_utf8(text, path, 1), str(path), None)
    _say_replaced(path, lone)
    return value


def _listed(value: Any, path: Path) -> list[Any]:
    """The records of one JSON value: itself, those of its one list, the rows of its columns."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a list of objects, found {type(value).__name__}.")
    lists = [name for name, inner in value.items() if _all_objects(inner)]
    if any(_is_message(item) for name in lists for item in value[name]):
        return [value]
    if len(lists) == 1:
        others = ", ".join(name for name in value if name not in lists) or "nothing"
        _say_once(path, "its records are those of %r; beside them stands %s", lists[0], others)
        return value[lists[0]]
    # pandas writes the number of the row before each value, or before each row
    columns = [list(inner.values()) if _numbered(inner) else inner for inner in value.values()]
    filled = not lists and all(isinstance(column, list) and column for column in columns)
    if filled and len({len(column) for column in columns}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    rows = list(value.values())
    return rows if _numbered(value) and _all_objects(rows) else [value]


def _all_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) for i in value)


def _is_message(item: Fields) -> bool:
    return {"role", "content"} <= item.keys() or {"from", "value"} <= item.keys()


def _numbered(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(key.isdecimal() for key in value)


def _csv(path: Path, columns: set[str] | None) -> Iterator[Record]:
    csv.field_size_limit(LONGEST)
    with _open(path) as handle:
        head = _filled_line(handle)
    # where lines end with LF, a CR that is not quoted ends no record: it is malformed
    lines = _text_lines(path, head[-1:] if head.endswith(("\n", "\r")) else "")
    rows = csv.reader((line for _, line in lines), strict=True, **_dialect(head, path))
    header: list[str] = []
    while True:
        where = f"{path}, line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{where}: malformed CSV: {error}.") from error
        if row is None:
            return
        if not row:
            continue
        if not header:
            header = _header(row, path, where)
        elif len(row) != len(header):
            raise DataError(
                f"{where}: expected {len(header)} fields divided by {rows.dialect.delimiter!r}, "
                f"found {len(row)}."
            )
        else:
            yield where, {name: value for name, value in zip(header, row, strict=True) if name}


def _dialect(head: str, path: Path) -> dict[str, Any]:
    """What divides the names of the header; and whether blanks follow it, which are no content."""
    marks = "\t,;|" if extension(path) == ".tsv" else ",;\t|"  # of equals, the first
    names = {mark: next(csv.reader([head], delimiter=mark), []) for mark in marks}
    mark = max(marks, key=lambda mark: len(names[mark]))
    if mark != marks[0]:
        _say_once(path, "its fields are divided by %r", mark)
    blanks = any(name.startswith(" ") for name in names[mark][1:])
    return {"delimiter": mark, "skipinitialspace": blanks}


def _header(row: list[str], path: Path, where: str) -> list[str]:
    """The names of the columns; of one that is not read, as pandas' numbers of the rows, ""."""
    header = [name.strip() for name in row]
    named = [name for name in header if name]
    if not named or len(set(named)) < len(named):
        raise DataError(f"{where}: expected a header of different names, found {header}.")
    if nameless := [str(number) for number, name in enumerate(header, 1) if not name]:
        _say_once(path, "column %s has no name and is not read", ", ".join(nameless))
    return header


def _table(path: Path, columns: set[str] | None) -> Iterator[Record]:
    number = 0
    try:
        for batch in _batches(path, columns):
            batch.validate(full=True)  # wrong offsets would be read past the end
            for fields in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", fields
    except Exception as error:  # a damaged file makes pyarrow raise what Python has
        after = f" after row {number}" if number else ""
        kind = extension(path).removeprefix(".").capitalize()
        raise DataError(
            f"{path} is not {'an' if kind == 'Arrow' else 'a'} {kind} file that can be read{after}"
            f": {_first_line(error)}"
        ) from error


def _batches(path: Path, columns: set[str] | None) -> Iterator[pa.RecordBatch]:
    def wanted(names: list[str]) -> list[str]:
        return [name for name in names if columns is None or name in columns]

    if extension(path) == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(TABLE_ROWS, columns=wanted(file.schema_arrow.names))
        return
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":  # a file; else a stream, as datasets writes
            file = pa.ipc.open_file(source)
            batches = map(file.get_batch, range(file.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, len(batch), TABLE_ROWS):
                yield batch.select(wanted(batch.schema.names)).slice(start, TABLE_ROWS)


Reader = Callable[[Path, set[str] | None], Iterator[Record]]
READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _table,
    ".arrow": _table,
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def _open(path: Path, newline: str = "") -> TextIO:
    """Text, gzipped or not, whatever its name says; lines end as they do in the file.

    A byte that is no UTF-8 is kept as half of a surrogate pair, for `_utf8` to name its line.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": newline}
    return gzip.open(path, "rt", **how) if packed else path.open(**how)


def _text_lines(path: Path, newline: str = "") -> Iterator[tuple[int, str]]:
    """Lines with their 1-based numbers; they end with LF, CRLF or CR, or as `newline` says."""
    with _open(path, newline) as handle:
        number = 0
        while line := handle.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise DataError(
                    f"{path}, line {number} has more than {LONGEST:,} characters; no such is read."
                )
            yield number, _utf8(line, path, number)


def _filled_line(handle: TextIO) -> str:
    """The next line that is not blank, or its first `LONGEST` characters; "" at the end."""
    while (line := handle.readline(LONGEST)).isspace():
        pass
    return line


def _utf8(text: str, path: Path, first_line: int) -> str:
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place, byte = error.start, ord(text[error.start]) - 0xDC00
        line, begin = first_line + text.count("\n", 0, place), text.rfind("\n", 0, place)
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text, found byte 0x{byte:02x} at position "
            f"{place - begin} of the line. Convert it, e.g. iconv -f LATIN1 -t UTF-8 {path.name}."
        ) from error
    return text


def _parsed(text: str, where: str, kind: type | None) -> tuple[Any, int]:
    """The JSON of a text, and how many lone halves of surrogate pairs were replaced in it.

    Such a half is what is left where an emoji is cut; no tokenizer and no UTF-8 file can hold it.
    """
    value = parse_json(text.strip(), where, kind=kind)
    if not LONE_ESCAPE.search(text):
        return value, 0
    whole, replaced = LONE.subn("\ufffd", json.dumps(value, ensure_ascii=False))
    return (json.loads(whole), replaced) if replaced else (value, 0)


def _say_replaced(path: Path, count: int) -> None:
    if count:
        _say_once(path, "%d lone halves of surrogate pairs are read as U+FFFD", count)


_said: set[tuple[object, ...]] = set()


def _say_once(path: Path, what: str, *values: object) -> None:
    """A file is read more than once; how is said the first time."""
    said = (path, what, *values)
    if said not in _said:
        _said.add(said)
        logger.warning("%s: " + what + ".", path, *values)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
