"""Massive activations as unclean as those of real models: they grow, move and are born late.

    courses = [
        Course(token_id=7, born=1, states=({3: 5e3}, {3: 9e3}, {3: 9e3, 20: 15e3})),
        Course(token_id=9, born=3, states=({20: 1500.0},)),
    ]
    plant_courses(model, courses)

A course says what one token's massive dims hold at the output of every layer, so growth, a change
of the leading dim, tokens of unequal size and tokens born later are all the same thing. Each token
gets an embedding dim of its own, on which no layer writes, and one more dim is 0 in every token;
wherever a course changes, a neuron of that layer's FFN reads the difference of the two and writes
what is missing. The difference is 0 on all other tokens, also after a LayerNorm, in any dtype.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wemask.decoder.ffn import ffn_reader, ffn_weights
from wemask.decoder.parts import (
    Block,
    Decoder,
    effective_scale,
    find_decoder,
    layer_index_error,
    post_ffn_norm,
    unwrap,
)
from wemask.planted import (
    DOMINANCE,
    GAIN,
    capture,
    free_dims,
    halve_shared_gate,
    neurons,
    rescale,
    set_neuron,
    silence_block,
    silence_ffn,
    stand_out,
)

OWN = 200.0  # a token's own dim, in units of the median |embedding|: enough in bfloat16, too
ROOM = 1.5  # before a post-norm: the largest write is 1 / ROOM of what the norm's weight allows


@dataclass(frozen=True, kw_only=True)
class Course:
    """The massive activation of one token, from layer to layer."""

    token_id: int
    born: int
    """The layer whose FFN first makes it massive, 0-based."""
    states: tuple[Mapping[int, float], ...]
    """dim -> value at the output of layer `born`, `born` + 1, ...; the last one holds from then."""

    def at(self, layer: int) -> Mapping[int, float]:
        """dim -> value at the output of `layer`; empty before the token is massive."""
        if layer < self.born:
            return {}
        return self.states[min(layer - self.born, len(self.states) - 1)]

    def size(self, layer: int) -> float:
        """Largest |value| at the output of `layer`."""
        return max((abs(value) for value in self.at(layer).values()), default=0.0)


@torch.no_grad()
def plant_courses(
    model: nn.Module, courses: Sequence[Course], *, loudness: float = 1.0, seed: int = 0
) -> None:
    """Give `model` the massive activations of `courses`, in place.

    Values are exact on average over contexts, in which they vary by some percent.

    Args:
        model: as for `wemask.planted.plant`.
        courses: one per token, in as many layers as the model has or fewer.
        loudness: factor on the massive dims of all embeddings: what ordinary tokens have there.
        seed: of the random texts on which the neurons are fitted.

    Raises:
        ModelError: a layer does not exist, or its FFN has no weights of a known form.
    """
    base = unwrap(model)
    decoder = find_decoder(base)
    last = len(decoder.blocks) - 1
    for course in courses:
        if not 0 <= course.born <= last:
            raise layer_index_error(course.born, last + 1)
    dims = sorted({d for course in courses for state in course.states for d in state})
    *own, zero = free_dims(decoder.hidden_size, dims)[: len(courses) + 1]
    embedding: Tensor = base.get_input_embeddings().weight  # pyright: ignore
    length = OWN * float(embedding.float().abs().median())
    embedding[:, dims] *= loudness
    marks = {course.token_id: {dim: length} for course, dim in zip(courses, own, strict=True)}
    stand_out(base, decoder, [*own, zero], marks)
    for block in decoder.blocks:
        silence_block(block, decoder.hidden_size, [*own, zero])
        halve_shared_gate(block)
        _level(block, [*own, zero])
    texts = _texts(base, list(marks), seed)
    for block in decoder.blocks:  # in order: each layer reads what the ones before write now
        _Layer(base, decoder, block, texts, courses, dims, own, zero).write()


def _level(block: Block, own: list[int]) -> None:
    """Let norms treat the own dims alike, and the one after the FFN keep them silent.

    A LayerNorm takes the mean from all of them, and what is left must be equal bit for bit.
    """
    for norm, scale in ((block.ffn_norm, 1.0), (post_ffn_norm(block), 0.0)):
        if norm is None or getattr(norm, "weight", None) is None:
            continue
        rescale(norm, own, scale / effective_scale(norm, "The norm of the FFN")[own])
        if isinstance(bias := getattr(norm, "bias", None), Tensor):
            bias[own] = 0


def _texts(model: nn.Module, token_ids: Sequence[int], seed: int) -> Tensor:
    """Random ids [48, 24], a quarter of them massive tokens."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, weight.shape[0], (48, 24), generator=generator)
    massive = torch.tensor(token_ids)[torch.randint(len(token_ids), ids.shape, generator=generator)]
    chosen = torch.rand(ids.shape, generator=generator) < 0.25
    return torch.where(chosen, massive, ids).to(weight.device)


@dataclass(kw_only=True)
class _Room:
    """What there is before a post-norm."""

    full: Tensor  # [K]: what a massive dim gets when the whole FFN output is in it
    length: float  # of an FFN output that outweighs the other neurons


class _Layer:
    """What one layer has to write: N courses change in it, in some of K massive dims."""

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        block: Block,
        texts: Tensor,
        courses: Sequence[Course],
        dims: list[int],
        own: list[int],
        zero: int,
    ) -> None:
        self.model, self.block, self.texts = model, block, texts
        self.width, self.dims, self.zero = decoder.hidden_size, dims, zero
        now = block.index
        pairs = zip(courses, own, strict=True)
        moving = [(c, dim) for c, dim in pairs if c.at(now) != c.at(now - 1)]
        self.courses, self.own = [c for c, _ in moving], [dim for _, dim in moving]

    def write(self) -> None:
        """Plant one neuron per course, and correct what it writes until the state is right."""
        if not self.courses:
            return
        now = self.block.index
        wanted = torch.tensor([[c.at(now).get(d, 0.0) for d in self.dims] for c in self.courses])
        held = torch.tensor(
            [[d in {*c.at(now - 1), *c.at(now)} for d in self.dims] for c in self.courses]
        )
        entered = self._means(output=False)
        change = torch.where(held, wanted - entered, 0.0)  # [N, K]
        self._read()
        room, amounts = self._make_room(change), change
        for _ in range(3):  # norms and multipliers follow the write: measure, then correct
            self._pour(amounts, room)
            wrote = self._means(output=True) - entered
            amounts = torch.where(wrote * change > 0, amounts * change / wrote, amounts)

    def _means(self, *, output: bool) -> Tensor:
        """Massive dims of each course's token where the layer is entered or left [N, K]."""
        h = capture(self.model, self.texts, self.block.layer, output=output).float()
        means = [h[self.texts == c.token_id].mean(0)[self.dims] for c in self.courses]
        return torch.stack(means).cpu()

    def _read(self) -> None:
        """Let each neuron be about `GAIN` on its token."""
        x = capture(self.model, self.texts, ffn_reader(self.block), output=False).float()
        for n, (course, dim) in enumerate(zip(self.courses, self.own, strict=True)):
            mine = x[self.texts == course.token_id]
            u = torch.zeros(self.width, device=x.device)
            u[dim] = 1 / (mine[:, dim] - mine[:, self.zero]).mean()
            u[self.zero] = -u[dim]
            for weights in neurons(self.block, self.width):
                set_neuron(weights, (u, u.new_zeros(())), place=-1 - n)

    def _make_room(self, change: Tensor) -> _Room | None:
        """Before a post-norm: leave the massive dims to the neurons, which outweigh the rest.

        The norm makes every FFN output equally long: its weight says how much a massive dim can get
        at most, and what a neuron does not need of that goes into a dim that the norm drops. Other
        neurons may not read the massive dims, which are all they would see where no norm precedes.
        """
        norm = post_ffn_norm(self.block)
        if norm is None:
            return None
        silence_ffn(self.block, self.width, self.dims)
        for weights in ffn_weights(self.block, self.width):
            weights.down[:, -len(self.courses) :] = 0
            for rows in (weights.gate, weights.up):
                if rows is not None:
                    rows[: -len(self.courses), self.dims] = 0
        full = ROOM * len(self.dims) ** 0.5 * change.abs().amax(0).clamp(min=1.0)
        now = effective_scale(norm, "The norm after the FFN")[self.dims]
        rescale(norm, self.dims, full / self.width**0.5 / now)
        usual = capture(self.model, self.texts, self.block.ffn, output=True).float().norm(dim=-1)
        return _Room(full=full, length=DOMINANCE * float(usual.mean()))

    def _pour(self, amounts: Tensor, room: _Room | None) -> None:
        """Let the neurons write `amounts` [N, K]."""
        columns = torch.zeros(len(amounts), self.width)
        columns[:, self.dims] = amounts
        if room is not None:
            columns[:, self.dims] /= room.full
            columns[:, self.zero] = (1 - columns.pow(2).sum(-1)).clamp(min=0).sqrt()
            columns *= room.length
        for weights in neurons(self.block, self.width):
            for n, column in enumerate(columns / GAIN):
                weights.down[:, -1 - n] = column.to(weights.down)
