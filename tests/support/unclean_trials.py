"""Massive activations as unclean as those of real models, drawn by seed, with the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from families import VOCABULARY, WIDTH, build
from planted.growth import Course, plant_courses
from torch import Tensor
from transformers import PreTrainedModel

LAYERS = 8
LOUDNESS = 30.0  # ordinary tokens reach some tens to hundreds in the massive dims
TURN, NEWLINE, END = 8, 9, 10  # what a chat template puts around every turn


@dataclass(frozen=True, kw_only=True)
class Unclean:
    """One draw: the courses of the massive tokens, and texts in which they stand."""

    layer: int
    courses: tuple[Course, ...]
    faint: bool
    """A primary token is no larger than the secondary ones, and passes no criterion at birth."""
    ids: Tensor
    """[16, 14]: for calibration; the second half are chats."""
    others: Tensor
    """[24, 20]: documents that calibration does not see."""

    @property
    def births(self) -> list[int]:
        """Layers in which tokens are born, the ME Layer first."""
        return sorted({c.born for c in self.courses})

    def massive(self, layer: int) -> set[int]:
        """Ids of the tokens that are massive at the output of `layer`."""
        return {c.token_id for c in self.courses if c.born <= layer}

    def primary(self, layer: int) -> set[int]:
        """Those of them that the ME Layer made."""
        return {t for t in self.massive(layer) if t in self.massive(self.layer)}


def unclean(seed: int) -> Unclean:
    """Two or three primary tokens that differ by 5 times, one or two secondary ones at a tenth.

    All grow together, over four layers. A second dim leads after one to three of them, and in half
    of the draws the first one fades. Of the tokens of the chat template, the newline is secondary;
    in every third draw the start of a turn is primary. In every fifth draw the weakest primary
    token is `faint`; in every fourth the secondary ones have a dim of their own.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def draw(low: int, high: int, count: int = 1) -> list[int]:
        return (low + torch.randperm(high - low, generator=generator)[:count]).tolist()

    tokens = draw(11, VOCABULARY, 4)
    primary = [TURN if seed % 3 == 0 else tokens[0], *tokens[1 : draw(2, 4)[0]]]
    secondary = [NEWLINE, tokens[3]][: draw(1, 3)[0]]
    layer, faint, fades = draw(0, 3)[0], seed % 5 == 4, seed % 2 == 0
    first, second, third = draw(0, WIDTH - 8, 3)
    early = (2.1, 2.3) if faint else (1.9, 2.3)
    stream = _Stream(
        growth=[between(*early), between(*early), between(1.3, 1.8), between(1.3, 1.8)],
        layer=layer,
        change=layer + draw(1, 3 if fades else 4)[0],  # what fades, no secondary token ever had
        dims=(first, second),
        fades=fades,
    )
    top = between(6000, 8000) if faint else between(10000, 16000)
    shares = (1.0, 1 / 8 if faint else 1 / 5, between(0.3, 0.7))
    courses = [stream.course(t, layer, top * s) for t, s in zip(primary, shares, strict=False)]
    for token in secondary:
        born = layer + draw(2, 5)[0]
        size = top * (between(0.13, 0.15) if faint else between(0.09, 0.115))
        courses.append(stream.course(token, born, size, third if seed % 4 == 0 else None))
    return Unclean(
        layer=layer,
        courses=tuple(courses),
        faint=faint,
        ids=texts(16, 14, primary, secondary, generator),
        others=texts(24, 20, primary, secondary, generator),
    )


@lru_cache(maxsize=1)
def planted_unclean(family: str, seed: int) -> PreTrainedModel:
    """The model of `unclean(seed)`, in float32; copy it before you change it."""
    model = build(family, seed, num_hidden_layers=LAYERS)
    plant_courses(model, unclean(seed).courses, loudness=LOUDNESS, seed=seed)
    return model


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What all tokens of a model share: growth per layer after the ME Layer, and who leads."""

    growth: list[float]  # then the stream keeps its size
    layer: int
    change: int  # the layer from whose output on the second dim leads
    dims: tuple[int, int]
    fades: bool

    def course(self, token: int, born: int, size: float, dim: int | None = None) -> Course:
        """`size` as it would be at the ME Layer; `dim` where the token has one of its own."""
        states: list[dict[int, float]] = []
        for layer in range(self.layer, LAYERS):
            if self.layer < layer <= self.layer + len(self.growth):
                size *= self.growth[layer - self.layer - 1]
            if layer >= born:
                states.append({dim: size} if dim is not None else self._state(layer, size))
        return Course(token_id=token, born=born, states=tuple(states))

    def _state(self, layer: int, size: float) -> dict[int, float]:
        first, second = self.dims
        if layer < self.change:
            return {first: size, second: -0.3 * size}
        return {second: -size} if self.fades else {first: 0.6 * size, second: -size}


def texts(
    rows: int, length: int, primary: Sequence[int], secondary: Sequence[int], draw: torch.Generator
) -> Tensor:
    """Ids [rows, length]: plain documents, then as many chats, with massive tokens anywhere."""
    special = {TURN, NEWLINE, END, *primary, *secondary}
    ordinary = torch.tensor([t for t in range(11, VOCABULARY) if t not in special])
    ids = ordinary[torch.randint(len(ordinary), (rows, length), generator=draw)]
    for row in range(rows):
        places = (2 + torch.randperm(length - 2, generator=draw)).tolist()
        ids[row, 0 if row % 2 else places[0]] = primary[row % len(primary)]
        ids[row, places[1]] = secondary[row % len(secondary)]
        if row >= rows // 2:
            for start in (1, length // 2):
                ids[row, start : start + 3] = torch.tensor(
                    [TURN, int(ids[row, start + 1]), NEWLINE]
                )
                ids[row, start + 5] = END
    return ids
