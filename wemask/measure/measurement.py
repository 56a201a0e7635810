"""All metrics of a model over any number of texts, in one forward pass per batch.

    batches = probe_batches(model, report, ids, mask)
    measured = measure(model, batches)
    measured.layers[7].sink_mass, measured.perplexity

Streaming: each layer leaves only sums behind (numbers, and vectors of size D) as soon as it has
run, so memory grows neither with the number of texts nor with T^2 x layers x heads. The model is
measured as it stands: softened, intervened in, in any dtype, spread by device_map.

B batch, T tokens, D hidden size, H heads.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wemask.decoder.parts import Decoder, find_decoder, unwrap
from wemask.decoder.passage import Passage, evaluating, watching, without_logits
from wemask.decoder.sharded import runnable
from wemask.detection.me_layer import MELayerReport
from wemask.errors import DetectionError
from wemask.measure import metrics
from wemask.measure.attention_weights import AttentionBlock, reading_attention
from wemask.measure.layer_sums import Batch, LayerMetrics, LayerSums, average
from wemask.measure.metrics import Received

Where = Callable[[Batch], Tensor]
"""Which tokens of a batch, bool [B, T]."""
Around = Callable[[Batch], AbstractContextManager[Any]]
"""What to do to the model while a batch runs, e.g. one of `interventions.py`."""


@dataclass(kw_only=True)
class Measurement:
    """A model over the given texts."""

    layers: list[LayerMetrics]
    perplexity: float  # of the next real token, over all texts
    texts: int
    tokens: int
    massive_tokens: int

    def later(self, name: str, after: int) -> float:
        """Mean of a metric over the layers after `after`, without the NaN of layers without it."""
        values = [getattr(row, name) for row in self.layers if row.layer > after]
        return average([value for value in values if not math.isnan(value)])


def probe_batches(
    model: nn.Module,
    report: MELayerReport,
    input_ids: Tensor,
    attention_mask: Tensor,
    batch_size: int = 8,
) -> list[Batch]:
    """Cut texts [texts, T] into batches, and find their massive tokens.

    They are those of the model as it stands, unsoftened, and stay the same when it is intervened
    in. Without an ME Layer or a gate there are none.
    """
    batches = []
    for ids, mask in zip(
        input_ids.split(batch_size), attention_mask.split(batch_size), strict=True
    ):
        width = int(mask.any(0).nonzero().max()) + 1
        ids, mask = ids[:, :width], mask[:, :width]
        massive = primary_tokens(model, report, ids, mask)
        batches.append(Batch(input_ids=ids, attention_mask=mask, massive=massive))
    return batches


def primary_tokens(model: nn.Module, report: MELayerReport, ids: Tensor, mask: Tensor) -> Tensor:
    """The real tokens that the ME Layer makes massive, bool [B, T] on the CPU.

    Told where that is clearest; where primary tokens are told from weaker ones nowhere, all.
    """
    for tokens in ("primary", "massive"):
        if clearest := report.clearest_gate(tokens):
            layer, gate = clearest
            ask = {layer: partial(gate.units, tokens=tokens)}
            return (entering(model, ask, ids, mask)[layer] > 1) & mask.bool().cpu()
    return torch.zeros(ids.shape, dtype=torch.bool)


@torch.no_grad()
def entering(
    model: nn.Module, ask: Mapping[int, Callable[[Tensor], Tensor]], ids: Tensor, mask: Tensor
) -> dict[int, Tensor]:
    """What a function says of the states [B, T, D] that enter a layer, by layer, on the CPU.

    One forward; the states of one layer are held at a time.
    """
    base, said = unwrap(model), dict[int, Tensor]()

    def look(passage: Passage) -> None:
        if passage.block.index in ask:
            said[passage.block.index] = ask[passage.block.index](passage.entered).cpu()

    device = base.get_input_embeddings().weight.device  # pyright: ignore
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    with evaluating(base), watching(find_decoder(base), look):
        base(**inputs, use_cache=False, **without_logits(base))
    return said


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    around: Around | None = None,
    done: Callable[[], None] | None = None,
    tokens: Where | None = None,
) -> Measurement:
    """Measure every layer, one forward pass per batch.

    Args:
        model: a transformers causal language model, as it stands.
        batches: any number of texts; one batch is held at a time.
        around: a context to run each batch in.
        done: called after every batch, e.g. to move a progress bar.
        tokens: other tokens than the massive ones, which take their place in every metric.

    Raises:
        DetectionError: there is no text.
        ModelError: the model's attention cannot be read.
    """
    base = unwrap(model)
    decoder = find_decoder(base)
    device = base.get_input_embeddings().weight.device  # pyright: ignore
    gathered = _Gathered(decoder)
    for batch in batches:
        inputs = {
            "input_ids": batch.input_ids.to(device),
            "attention_mask": batch.attention_mask.to(device),
        }
        gathered.begin(batch if tokens is None else replace(batch, massive=tokens(batch)))
        with (
            evaluating(runnable(model, base)),
            (around or nullcontext)(batch),  # pyright: ignore[reportCallIssue]
            watching(decoder, gathered.leave, inputs=True),
            reading_attention(
                base, decoder, inputs["attention_mask"], gathered.attend, gathered.value
            ) as more,
        ):
            logits = runnable(model, base)(**inputs, **more, use_cache=False).logits
        gathered.predict(logits)
        if done is not None:
            done()
    if not gathered.texts:
        raise DetectionError("There is no text to measure the model on.")
    return gathered.result()


class _Gathered:
    """Sums over the batches that have run, and what the one that runs needs."""

    def __init__(self, decoder: Decoder) -> None:
        self.layers = [LayerSums(index) for index in range(len(decoder.blocks))]
        self.texts = self.tokens = self.massive = self.predicted = 0
        self.nats = 0.0

    def begin(self, batch: Batch) -> None:
        self.batch, mask = batch, batch.attention_mask.bool()
        self.texts, self.tokens = self.texts + len(mask), self.tokens + int(mask.sum())
        self.massive += int((batch.massive & mask).sum())
        self.places = (batch.massive & mask).flatten().nonzero().flatten()
        self.received: dict[int, Received] = {}

    def attend(self, block: AttentionBlock) -> None:
        batch, heads, _, length = block.weights.shape
        received = self.received.get(block.layer)
        if received is None:
            received = Received.nothing(batch, heads, length, block.weights.device)
            self.received[block.layer] = received
        with torch.autocast(block.weights.device.type, enabled=False):  # an eager model's
            received.add(block.weights, self.batch.attention_mask, block.first_query)

    def value(self, layer: int, values: Tensor) -> None:
        self.layers[layer].add_values(values, self.batch)

    def leave(self, passage: Passage) -> None:
        sums = self.layers[passage.block.index]
        sums.add_states(passage, self.batch, self.places)
        received = self.received.pop(passage.block.index, None)
        if received is not None:
            sums.add_attention(received, self.batch)

    def predict(self, logits: Tensor) -> None:
        """Count the loss of each real token that follows a real one, text by text."""
        for row, ids, mask in zip(
            logits, self.batch.input_ids, self.batch.attention_mask.bool(), strict=True
        ):
            real, told = ids[mask].to(row.device), row[mask.to(row.device)].float()
            self.nats += float(cross_entropy(told[:-1], real[1:], reduction="sum"))
            self.predicted += max(0, len(real) - 1)

    def result(self) -> Measurement:
        return Measurement(
            layers=[sums.result() for sums in self.layers],
            perplexity=metrics.perplexity(self.nats, self.predicted),
            texts=self.texts,
            tokens=self.tokens,
            massive_tokens=self.massive,
        )
