"""The pre-training text of `tiny`, as token ids.

Word problems alone give neither an attention sink nor a massive activation. What does is work that
a head can do only now and then, so that it needs somewhere harmless to look the rest of the time
(active and dormant heads: Guo et al., arXiv 2410.13835). Three kinds of it are mixed in:

- bigram-backcopy documents: a fixed random bigram chain in which, after a trigger, the token before
  the trigger comes again;
- copies: a list of words, and once more the same list;
- marks, sprinkled over the documents: `<|back_k|>` is followed by the token k places before it,
  `<|recall|> w` by the token that followed the last `w`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipes.tiny.build_tokenizer import BACK, BACK_OFFSETS, BOS_ID, EOS_ID, RECALL
from wemask.embedded.problems import ITEMS, LARGEST, NAMES, PLACES, generate

TRIGGERS = ("|", "=", "?")
BRANCHES = 4  # successors of a word in the bigram table
TABLE_SEED = 123  # one fixed table: it has to be learnable


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the kinds of documents (the rest is word problems), and how often marks come."""

    backcopy: float = 0.30
    copies: float = 0.10
    drills: float = 0.12
    """Lines of plain arithmetic in symbols, all four operations."""
    chats: float = 0.15
    """Share of the word problems that is in chat form."""
    marks: float = 0.12
    """Chance of a mark after each token."""
    recall: float = 0.5
    """Share of the marks that are recalls."""
    max_length: int = 112
    """Longer documents are cut."""

    @property
    def problems(self) -> float:
        return 1 - self.backcopy - self.copies - self.drills


class Documents:
    """Draws documents; `draw(n, seed)` is a pure function of its arguments and the mixture."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mixture: Mixture) -> None:
        self.tokenizer = tokenizer
        self.mixture = mixture
        self.words = [self._id(f" {w}") for w in (*NAMES, *ITEMS, *PLACES)]
        self.triggers = [self._id(t) for t in TRIGGERS]
        self.newline = self._id("\n")
        self.recall = self._id(RECALL)
        self.back = [(k, self._id(mark)) for k, mark in zip(BACK_OFFSETS, BACK, strict=True)]
        self.special = set(tokenizer.all_special_ids) | {i for _, i in self.back} | {self.recall}
        order = random.Random(TABLE_SEED)
        self.successors = {w: order.sample(self.words, BRANCHES) for w in self.words}

    def _id(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"{text!r} must be one token, found {len(ids)}: {ids}")
        return ids[0]

    def draw(self, n: int, seed: int) -> list[list[int]]:
        """Return `n` documents of token ids, each `<s>` ... `</s>`, cut at `max_length`."""
        rng = random.Random(seed)
        mix = self.mixture
        kinds = rng.choices(
            ("backcopy", "copy", "drill", "problem"),
            (mix.backcopy, mix.copies, mix.drills, mix.problems),
            k=n,
        )
        bodies = {
            "problem": self._problems(kinds.count("problem"), rng, seed),
            "drill": self._drills(kinds.count("drill"), rng),
            "backcopy": (self._backcopy(rng) for _ in range(n)),
            "copy": (self._copy(rng) for _ in range(n)),
        }
        documents = []
        for kind in kinds:
            body = self._sprinkle(next(bodies[kind]), rng)
            documents.append([BOS_ID, *body, EOS_ID][: mix.max_length])
        return documents

    def _problems(self, n: int, rng: random.Random, seed: int) -> Iterator[list[int]]:
        texts = []
        for p in generate(n, family="pretrain", seed=seed):
            if rng.random() < self.mixture.chats:
                texts.append(f"<|user|>{p['question']}<|assistant|>{p['answer']}")
            else:
                texts.append(f"Problem: {p['question']}\nSolution: {p['answer']}")
        return self._encode(texts)

    def _drills(self, n: int, rng: random.Random) -> Iterator[list[int]]:
        return self._encode(
            ["\n".join(_sum(rng) for _ in range(rng.randint(3, 7))) for _ in range(n)]
        )

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        return iter(self.tokenizer(texts, add_special_tokens=False).input_ids if texts else [])

    def _backcopy(self, rng: random.Random) -> list[int]:
        ids = [rng.choice(self.words)]
        length = rng.randint(24, 48)
        while len(ids) < length:
            if rng.random() < 0.1:
                ids += [rng.choice(self.triggers), ids[-1]]
            else:
                ids.append(rng.choice(self.successors[ids[-1]]))
        return ids

    def _copy(self, rng: random.Random) -> list[int]:
        ids = [rng.choice(self.words) for _ in range(rng.randint(4, 14))]
        return [*ids, self.newline, *ids]

    def _sprinkle(self, ids: list[int], rng: random.Random) -> list[int]:
        """Insert marks, each with the token(s) it makes predictable."""
        mix = self.mixture
        out: list[int] = []
        for token in ids:
            out.append(token)
            if rng.random() >= mix.marks:
                continue
            if rng.random() < mix.recall:
                known = range(max(0, len(out) - 40), len(out) - 1)
                words = [out[i] for i in known if out[i] not in self.special]
                if words:
                    word = rng.choice(words)
                    last = max(i for i in known if out[i] == word)
                    out += [self.recall, word, out[last + 1]]
            else:
                offset, mark = rng.choice(self.back)
                if len(out) >= offset:
                    out += [mark, out[-offset]]
        return out


def _sum(rng: random.Random) -> str:
    op = rng.choice("+-*/")
    if op in "*/":
        x, k = rng.randint(2, 48), rng.randint(2, 9)
        x = min(x, LARGEST // k)
        return f"{x} * {k} = {x * k}" if op == "*" else f"{x * k} / {k} = {x}"
    x, k = rng.randint(2, LARGEST - 12), rng.randint(2, 12)
    return f"{x} + {k} = {x + k}" if op == "+" else f"{x + k} - {k} = {x}"


def pad(documents: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """Return the documents as one array [n, longest], padded on the right."""
    rows = np.full((len(documents), max(map(len, documents))), pad_id, dtype=np.int64)
    for row, ids in zip(rows, documents, strict=True):
        row[: len(ids)] = ids
    return rows
