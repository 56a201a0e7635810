"""What `data.path` stands for: a file, or the data files of a folder and of those within it.

A download of a hub dataset, a folder of `save_to_disk` and one of a user's own have one rule: files
with a data extension, of the split where names say one. What is not read is said.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from wemask.data.records import READERS, extension, has_data_extension, is_one_object
from wemask.errors import DataError, nearest
from wemask.files import kind_of

logger = logging.getLogger(__name__)

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
SHARD = re.compile(r"-\d{5}-of-\d{5}.*")  # of a hub dataset: train_sft-00000-of-00003-ab12.parquet
# what `datasets` writes beside the records, and what it keeps of work on them
BESIDE = re.compile(r"(state|dataset_infos?|dataset_dict)\.json|cache-.*\.arrow")
MOST = 100_000  # files of a folder
SHOWN = 8


def find_files(path: Path, split: str) -> list[Path]:
    """Return the data files that `path` stands for: itself, or those of a folder, in their order.

    Of a folder where names of files or folders carry split words (`train-00000.parquet`), only
    those of `split`.

    Raises:
        DataError: `path` does not exist (names the nearest); holds no file that can be read, none
            of `split`, or several datasets.
    """
    if not kind_of(path):
        raise DataError(_missing(path))
    if not path.is_dir():
        extension(path)
        return [path]
    names = sorted(_names(path))
    data = [name for name in names if _may_hold_records(path / name)]
    if not data:
        found = f" It holds: {_listing(names)}." if names else ""
        raise DataError(f"Folder {path} holds no data file: expected {', '.join(READERS)}.{found}")
    chosen = _of_split(path, data, split)
    chosen = [name for name in chosen if not is_one_object(path / name)] or chosen
    if beside := [name for name in names if name not in set(chosen)]:
        logger.info("%s: read are %s; not read: %s.", path, _listing(chosen), _listing(beside))
    return [path / name for name in chosen]


def _names(folder: Path) -> Iterator[Path]:
    """All files below a folder, as paths from there; hidden folders by their name alone."""
    seen = {os.path.realpath(folder)}
    count = 0
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        here = Path(place).relative_to(folder)
        yield from (here / name for name in (*files, *filter(_is_hidden, folders)))
        if (count := count + len(files)) > MOST:
            raise DataError(f"Folder {folder} holds more than {MOST:,} files: name one within it.")
        within, folders[:] = sorted(folders), []
        for name in within:  # a link to what was met would be read twice, or for ever
            real = os.path.realpath(Path(place, name))
            if not (_is_hidden(name) or real in seen):
                seen.add(real)
                folders.append(name)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _may_hold_records(file: Path) -> bool:
    name = file.name
    usual = not _is_hidden(name) and not BESIDE.fullmatch(name)
    return usual and has_data_extension(name) and file.is_file()


def _of_split(folder: Path, names: Sequence[Path], split: str) -> list[Path]:
    words = {name: _split_word(name) for name in names}
    if split not in SPLIT_WORDS:
        chosen = [name for name in names if split in _labels(name)]
    elif any(words.values()):
        chosen = [name for name in names if words[name] == split]
    else:
        chosen = list(names)
    if not chosen and any(words.values()):
        raise DataError(
            f"No file of split {split!r} in folder {folder}; it holds: {_listing(names)}."
        )
    chosen = chosen or list(names)
    shards = [name for name in chosen if SHARD.search(name.name)]
    if len(splits := {_labels(name)[0] for name in shards}) > 1:
        options = "\n".join(f"  data.split={name}" for name in sorted(splits))
        raise DataError(f"Folder {folder} holds several splits. Type one:\n{options}")
    if len(parents := {name.parent for name in shards}) > 1:
        options = "\n".join(f"  data.path={folder / name}" for name in sorted(parents))
        raise DataError(f"Folder {folder} holds several datasets. Type one:\n{options}")
    return chosen


def _labels(name: Path) -> list[str]:
    """What names a split may have in a path: the file's without number and extension, folders'."""
    return [SHARD.sub("", name.name).split(".")[0], *reversed(name.parts[:-1])]


def _split_word(name: Path) -> str | None:
    """The split that a path names: its file, else the nearest of its folders."""
    for part in reversed(name.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, known in SPLIT_WORDS.items():
            if words & set(known):
                return split
    return None


def _listing(names: Sequence[Path]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def _missing(path: Path) -> str:
    folder = path.parent
    if not (kind_of(folder) == "folder" and os.access(folder, os.R_OK)):
        return f"No such file: {path} (nor is there a folder {folder} that can be read)."
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() or has_data_extension(p))
    holds = f" {folder}/ holds: {', '.join(names[:8])}." if names else f" {folder}/ holds no data."
    return f"No such file: {path}.{nearest(path.name, names)}{holds}"
