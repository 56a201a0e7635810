"""Data files -> records, each with the place it came from: `("gsm8k.jsonl, line 17", {...})`.

JSON lines, JSON, CSV (plain or gzipped) and Parquet, chosen by file extension and read as a stream.
Whatever is wrong with a file becomes one `DataError` with the file, the line and what was expected.
Nothing is ever unpickled.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wemask.errors import DataError, nearest

Fields = dict[str, Any]
Record = tuple[str, Fields]
"""Where it stands (for messages), and its columns."""

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
PARQUET_BATCH = 1024  # rows in memory at once


def read_records(path: Path, columns: set[str] | None = None) -> Iterator[Record]:
    """Stream the records of one file.

    Args:
        path: a file whose extension is in `READERS`.
        columns: top-level columns that are needed; Parquet reads no others.

    Raises:
        DataError: unknown extension, unreadable, empty, malformed, or not UTF-8.
    """
    reader = READERS[_extension(path)]
    empty = True
    try:
        for record in reader(path, columns):
            empty = False
            yield record
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error
    if empty:
        raise DataError(f"{path} is empty: expected at least one record.")


def find_files(path: Path, split: str) -> list[Path]:
    """Return the data files that `path` stands for: itself, or those of a folder.

    Of a folder whose file names carry split words (`train-00000.parquet`), only those of `split`.

    Raises:
        DataError: `path` does not exist (names the nearest), or holds no file that can be read.
    """
    if not path.exists():
        raise DataError(_missing(path))
    if not path.is_dir():
        _extension(path)
        return [path]
    files = sorted(p for p in path.iterdir() if p.is_file() and has_data_extension(p))
    if not files:
        raise DataError(f"Folder {path} holds no data file: expected {', '.join(READERS)}.")
    of_split = {}
    for file in files:
        words = set(re.split(r"[^a-z]+", file.name.lower()))
        of_split[file] = next((name for name, ws in SPLIT_WORDS.items() if words & set(ws)), None)
    if not any(of_split.values()):
        return files
    chosen = [file for file in files if of_split[file] == split]
    if not chosen:
        found = ", ".join(file.name for file in files[:8])
        raise DataError(f"No file of split {split!r} in folder {path}; it holds: {found}.")
    return chosen


def has_data_extension(path: str | Path) -> bool:
    """Whether `path` ends like a data file, so that it cannot be meant as a hub id."""
    return str(path).lower().endswith(tuple(READERS))


def column_names(fields: Fields) -> list[str]:
    """Return all column names of a record, nested ones dotted: `extra_info.response`."""
    names: list[str] = []
    for name, value in fields.items():
        inner = column_names(value) if isinstance(value, dict) else []
        names += [f"{name}.{i}" for i in inner] or [name]
    return names


def _json_lines(path: Path, columns: set[str] | None) -> Iterator[Record]:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        where, sought = f"{path}, line {number}", "one JSON object per line"
        value = _parse_json(line.strip(), where, sought)
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f"{where}: expected {sought}, found {kind}: {_shorten(line)}")
        yield where, value


def _json_file(path: Path, columns: set[str] | None) -> Iterator[Record]:
    """A list of records, or, as many files of that name hold, one record per line."""
    with _open(path) as handle:
        start = handle.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from _json_lines(path, columns)
        return
    text = "".join(line for _, line in _text_lines(path))
    for number, item in enumerate(_parse_json(text, str(path), "a list of objects"), 1):
        where = f"{path}, item {number}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {type(item).__name__}.")
        yield where, item


def _csv(path: Path, columns: set[str] | None) -> Iterator[Record]:
    rows = csv.reader((line for _, line in _text_lines(path)), strict=True)
    header: list[str] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: malformed CSV: {error}.") from error
        if row is None:
            return
        where = f"{path}, line {rows.line_num}"
        if not row:
            continue
        if not header:
            header = row
            if len(set(header)) < len(header) or "" in header:
                raise DataError(f"{where}: expected a header of different names, found {header}.")
        elif len(row) != len(header):
            raise DataError(f"{where}: expected {len(header)} fields, found {len(row)}.")
        else:
            yield where, dict(zip(header, row, strict=True))


def _parquet(path: Path, columns: set[str] | None) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = None if columns is None else [c for c in names if c in columns]
            for batch in file.iter_batches(PARQUET_BATCH, columns=wanted):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", fields
    except (pa.ArrowException, UnicodeDecodeError) as error:
        after = f" after row {number}" if number else ""
        raise DataError(
            f"{path} is not a Parquet file that can be read{after}: {_first_line(error)}"
        ) from error


Reader = Callable[[Path, set[str] | None], Iterator[Record]]
READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _csv,
    ".jsonl.gz": _json_lines,
    ".json.gz": _json_file,
    ".csv.gz": _csv,
    ".parquet": _parquet,
}


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their 1-based numbers; decoded one by one, so a wrong byte has a line."""
    with _open(path) as handle:
        for number, raw in enumerate(handle, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: expected UTF-8 text, found byte "
                    f"0x{raw[error.start]:02x} at position {error.start + 1} of the line. "
                    f"Convert it, e.g. iconv -f LATIN1 -t UTF-8 {path.name}."
                ) from error


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text else ""
        raise DataError(
            f"{where}: malformed JSON at {place}column {error.colno} ({error.msg}); expected "
            f"{expected}, found {_shorten(text)}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested, or an integer too long, to be parsed
        raise DataError(f"{where}: JSON that cannot be read: {error}.") from error


def _shorten(text: str, length: int = 60) -> str:
    text = text.strip()
    return repr(text if len(text) <= length else text[:length] + "...")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _extension(path: Path) -> str:
    name = path.name.lower()
    matches = [extension for extension in READERS if name.endswith(extension)]
    if not matches:
        raise DataError(
            f"{path} has no extension that can be read: expected {', '.join(READERS)}. "
            "Rename it if it holds one of these formats."
        )
    return max(matches, key=len)


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"No such file: {path} (nor is there a folder {folder})."
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() or has_data_extension(p))
    holds = f" {folder}/ holds: {', '.join(names[:8])}." if names else f" {folder}/ holds no data."
    return f"No such file: {path}.{nearest(path.name, names)}{holds}"
