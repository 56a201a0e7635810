"""The texts that a model is analysed or detected on: a file of the user's, or embedded ones."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from wemask.data.records import Fields, has_data_extension, read_records
from wemask.data.schema import Text, Whole, settings
from wemask.detection.calibration import padded
from wemask.embedded.problems import generate
from wemask.errors import DataError
from wemask.files import read_text

MAX_LISTED = 8
MOST = 256  # texts of detection.texts


@settings("detection")
class DetectionConfig:
    """What is read while massive tokens are looked for."""

    texts: Text | None = None
    """A .txt or data file; None: the built-in texts."""
    chats: bool = True
    """Read each text through the chat template, too, where there is one."""
    examples: Whole = 8
    """Training examples that are read with them, as they are trained; none where nothing is."""

    def read_texts(self) -> list[str] | None:
        """The texts of the file; None: there is none.

        Raises:
            DataError: it cannot be read, or holds no text.
        """
        return None if self.texts is None else load_texts(Path(self.texts), MOST)


def load_texts(source: Path | None, count: int, column: str | None = None) -> list[str]:
    """The first `count` texts.

    Args:
        source: a .txt file (texts divided by empty lines, or one in each line where there is no
            empty line), a data file (jsonl, json, csv, parquet), or None: word problems with their
            answers, embedded in the package.
        count: how many at most.
        column: of a data file; None: `text`, else all columns that hold text, joined.

    Raises:
        DataError: no such file or column, or no text in it.
    """
    if source is None:
        problems = generate(count, seed=0, split="test", family="pretrain")
        return [f"{problem['question']}\n{problem['answer']}" for problem in problems]
    if has_data_extension(str(source)):
        texts = (_text_of(fields, column, where) for where, fields in read_records(source))
    else:
        texts = _parts(source)
    found = list(islice((text for text in texts if text.strip()), count))
    if not found:
        raise DataError(f"{source} holds no text.")
    return found


def _parts(source: Path) -> Iterator[str]:
    """The texts of a .txt file."""
    whole = read_text(source).removeprefix("\ufeff")
    parts = whole.split("\n\n") if "\n\n" in whole.strip() else whole.splitlines()
    return (part.strip("\n") for part in parts)


def _text_of(fields: Fields, column: str | None, where: str) -> str:
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    if column is None:
        return texts.get("text", "\n".join(texts.values()))
    if column not in texts:
        shown = ", ".join([*texts][:MAX_LISTED]) or "none"
        raise DataError(f"{where}: the column {column!r} was sought; columns with text: {shown}.")
    return texts[column]


def tokenise(tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask [texts, T] with T <= `length`, as the tokenizer does (with BOS or not).

    Padded on the right. Texts of fewer than two tokens, which have no next token, are left out.

    Raises:
        DataError: nothing is left.
    """
    rows = [tokenizer(text)["input_ids"][:length] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise DataError(f"None of the {len(texts)} texts has two tokens or more.")
    return padded(rows)
