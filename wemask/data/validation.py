"""A part of the training data that is kept apart, to choose a checkpoint by its loss.

It is drawn by prompt, not by record: whatever answers one prompt, in capitals or not, with this
punctuation or that, stays on one side. The draw hangs on the texts and `data.seed` alone, so that
all arms, ranks and resumed jobs have the same. It never reads the items of a benchmark.
"""

import hashlib
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

import datasets

from wemask.data.examples import DataConfig, load_examples
from wemask.errors import DataError

logger = logging.getLogger(__name__)


def load_split(config: DataConfig) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """What is trained, and what `data.validation` keeps apart from it.

    Raises:
        DataError: as `load_examples`, of either; or the two are not of one kind.
    """
    examples = load_examples(config)
    if config.validation is None:
        return examples, None
    if not isinstance(config.validation, str):
        return split_off(examples, config.validation, config.seed)
    other = replace(
        config, name="jsonl", path=config.validation, split="validation", validation=None
    )
    apart = load_examples(other, like=examples.features)
    if leaked := also_trained(apart, examples):
        logger.warning(
            "%d of the %d validation examples of %s have a prompt that is trained on, too.",
            *(leaked, len(apart), config.validation),
        )
    return examples, apart


def split_off(examples: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Draw `share` of a dataset of `load_examples`, prompt by prompt: (the rest, what was drawn).

    At least one prompt is drawn; a prompt with more examples than there is room for is passed over.

    Raises:
        DataError: all examples have one prompt, so nothing can be kept apart.
    """
    groups = defaultdict(list)
    for number, example in enumerate(examples):
        groups[prompt_key(example)].append(number)
    if len(groups) < 2:
        raise DataError(
            f"All {len(examples)} examples have one prompt: no validation data can be split off. "
            "Name a file: data.validation=FILE."
        )
    wanted = min(round(share * len(examples)), len(examples) - 1)
    drawn = _draw(list(groups.items()), wanted, seed)
    kept = sorted(set(range(len(examples))) - set(drawn))
    return examples.select(kept), examples.select(sorted(drawn))


def _draw(groups: list[tuple[str, list[int]]], wanted: int, seed: int) -> list[int]:
    order = sorted(groups, key=lambda group: _digest(f"{seed} {group[0]}"))
    drawn: list[int] = []
    for _, numbers in order:
        if len(drawn) + len(numbers) <= wanted:
            drawn += numbers
    return drawn or min((numbers for _, numbers in order), key=len)


def also_trained(validation: Iterable[Any], examples: Iterable[Any]) -> int:
    """How many examples of a validation file have a prompt that is trained on."""
    keys = {prompt_key(example) for example in examples}
    return sum(prompt_key(example) in keys for example in validation)


def prompt_key(example: Mapping[str, Any]) -> str:
    """A digest of the words before the first answer (of a text: all), without system messages.

    Case, punctuation and spaces do not count, nor does how Unicode writes a letter.
    """
    said = example.get("text")
    if said is None:
        messages = example["prompt" if "prompt" in example else "messages"]
        asked = takewhile(lambda message: message["role"] != "assistant", messages)
        said = " ".join(m["content"] for m in asked if m["role"] != "system")
    plain = unicodedata.normalize("NFKC", said).casefold()
    return _digest(" ".join(re.findall(r"\w+", plain)) or said)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
