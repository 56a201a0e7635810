"""Find the ME Layer: the decoder layer whose FFN gives birth to massive activations.

One forward pass over a few short texts. Each layer leaves only reductions behind (largest value,
median, the columns of its largest dims), never its hidden states. From them:

    massive (sun2024)   |h[l,t,d]| > 100  and  >= 1000 * median |h[l]|      (arXiv 2402.17762)
    massive (relative)  |h[l,t,d]| >= min_ratio * median |h[l]|             (small models)
    ME Layer            first layer whose output has massive activations that persist, while its
                        input has none, and whose FFN wrote them

N is the number of real tokens of the calibration texts, D the hidden size.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wemask.architectures import (
    Decoder,
    effective_scale,
    find_decoder,
    unwrap,
    without_weights,
)
from wemask.errors import DetectionError, ModelError, nearest
from wemask.me_layer import Criterion, LayerRow, MassiveToken, MELayerReport
from wemask.metrics import kl_from_uniform
from wemask.separation import separate
from wemask.tracing import Trace, trace_layers

CALIBRATION_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Tom has 5 apples. He buys 3 more. How many apples does Tom have now?",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "In 1969, two people walked on the Moon; 600 million watched on television.",
    "Question: What is 12 * 7?\nAnswer: 84.\n",
    "<html><body><p>Hello, world!</p></body></html>",
    "Paris is the capital of France.\nBerlin is the capital of Germany.\n",
    "Once upon a time there was a little girl named Lily. She liked to play outside.",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "E = mc^2, where c is the speed of light: 299792458 m/s.",
    "Dear Sir or Madam,\n\nthank you for your letter of 3 May.\n\nYours faithfully",
    "SELECT id, price FROM orders WHERE price > 100 ORDER BY id;",
    "Summary of the results",
    "- milk\n- eggs\n- 2 loaves of bread\n- 1 kg of sugar\n",
    "Bonjour, je voudrais un cafe, s'il vous plait.",
    "A B C D E F G 1 2 3 4 5 6 7",
)
MAX_MASSIVE_DIMS = 8
ALIVE_SHARE = 0.25  # erased: below this share of the magnitude at the ME Layer


def detect(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    texts: tuple[str, ...] | list[str] | None = None,
    criterion: Criterion | str | None = None,
    **thresholds: float,
) -> MELayerReport:
    """Find where massive activations are born in `model`.

    Args:
        model: a transformers causal language model, unsoftened, in any dtype, also sharded by
            `device_map`.
        tokenizer: for `texts`; not needed with `input_ids`.
        input_ids: calibration token ids [B, T] instead of texts.
        attention_mask: 1 for real tokens [B, T]; default all.
        texts: calibration texts; default 16 short diverse ones.
        criterion: `sun2024`, `relative`, or a `Criterion`; default what the model's own config
            says (`config.wemask_criterion`, in small models such as `tiny`), else `sun2024`.
        **thresholds: fields of `Criterion`, e.g. `min_ratio=50` for `relative`.

    Returns:
        The report; `report.found` is False, with the nearest miss, where there is no ME Layer.

    Raises:
        DetectionError: no input, wrong shapes, or a softened model.
        ModelError: a part of the architecture was not found.
    """
    base = unwrap(model)
    if getattr(base, "wemask_handle", None) is not None:
        raise DetectionError(
            "The model is softened: detection would see the softened activations. Call "
            "`model.wemask_handle.remove()`, detect, soften again."
        )
    if without_weights(base):
        raise ModelError(
            "The model is on the meta device: it has shapes but no weights, so nothing can be "
            "detected. Load the weights first."
        )
    decoder = find_decoder(base)
    carried: dict[str, Any] = getattr(base.config, "wemask_criterion", None) or {"name": "sun2024"}
    criterion = _criterion(carried if criterion is None else criterion, thresholds)
    input_ids, attention_mask = calibration_inputs(tokenizer, input_ids, attention_mask, texts)
    embedding: Tensor = base.get_input_embeddings().weight  # pyright: ignore
    largest, device = int(input_ids.max()), embedding.device
    if largest >= embedding.shape[0] or int(input_ids.min()) < 0:
        raise DetectionError(
            f"Token id {largest} is not in the model's vocabulary of {embedding.shape[0]}. Is this "
            "the model's own tokenizer?"
        )
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    traces = trace_layers(base, decoder, input_ids, attention_mask)
    return _Analysis(
        base, decoder, tokenizer, input_ids, attention_mask, traces, criterion
    ).report()


def _criterion(
    criterion: Criterion | str | dict[str, Any], thresholds: dict[str, float]
) -> Criterion:
    if isinstance(criterion, Criterion):
        if thresholds:
            raise DetectionError(f"Give thresholds inside Criterion(...), not beside: {thresholds}")
        return criterion
    known = tuple(Criterion.__dataclass_fields__)
    for key in thresholds:
        if key not in known:
            raise DetectionError(
                f"detect has no argument {key!r}; thresholds are {', '.join(known)}."
                + nearest(key, known)
            )
    given = {"name": criterion} if isinstance(criterion, str) else criterion
    return Criterion(**{**given, **thresholds})


def calibration_inputs(
    tokenizer: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    texts: tuple[str, ...] | list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] that `detect` with the same arguments reads.

    Raises:
        DetectionError: nothing to read, or wrong shapes.
    """
    if input_ids is None and attention_mask is not None:
        raise DetectionError("attention_mask was given without input_ids. Give both.")
    if input_ids is not None:
        if not isinstance(input_ids, Tensor):
            raise DetectionError(f"input_ids must be a tensor [batch, tokens], got {input_ids!r}.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.ndim != 2 or mask.shape != input_ids.shape or not mask.any():
            raise DetectionError(
                "input_ids and attention_mask must be [batch, tokens] with at least one real "
                f"token; got {tuple(input_ids.shape)} and {tuple(mask.shape)}."
            )
        return input_ids, mask
    if tokenizer is None or isinstance(tokenizer, Tensor):  # ids given in its place
        raise DetectionError(
            "Detection needs something to read: detect(model, tokenizer) or "
            "detect(model, input_ids=ids, attention_mask=mask)."
        )
    texts = [texts] if isinstance(texts, str) else texts or CALIBRATION_TEXTS
    rows = [tokenizer(text)["input_ids"] for text in texts]
    rows = [row for row in rows if row]
    if not rows:
        raise DetectionError("The calibration texts are empty. Give texts=['...'].")
    return padded(rows)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] of texts, padded on the right.

    By hand: no pad token is needed, and what is there is masked out.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


# --- from reductions to a report -----------------------------------------------------------------


@dataclass
class _Analysis:
    model: nn.Module
    decoder: Decoder
    tokenizer: Any
    input_ids: Tensor
    attention_mask: Tensor
    traces: list[Trace]  # traces[l + 1] is layer l
    criterion: Criterion
    _positions: Tensor = field(init=False)  # [N, 2]: text and position of each real token

    def __post_init__(self) -> None:
        self._positions = self.attention_mask.bool().nonzero().cpu()

    def report(self) -> MELayerReport:
        rows = self._rows()
        emergences = [i for i in range(len(self.decoder.blocks)) if self._emerges(i)]
        report = MELayerReport(
            model=_identity(self.model),
            num_layers=len(self.decoder.blocks),
            hidden_size=self.decoder.hidden_size,
            criterion=self.criterion,
            layers=rows,
            relief=torch.stack([t.strongest for t in self.traces]),
        )
        report.emergences = [i for i in emergences if self._persists(i) and self._by_ffn(i)]
        report.other_criterion = self._other()
        if report.emergences:
            self._fill(report, report.emergences[0])
        else:
            report.nearest_miss = self._nearest_miss(emergences)
            report.probe_ids = self._probe_ids(int(self.traces[-1].token_max.argmax()))
        return report

    def _rows(self) -> list[LayerRow]:
        rows = []
        for i, trace in enumerate(self.traces):
            token = int(trace.token_max.argmax())
            text, position = self._positions[token].tolist()
            largest = float(trace.token_max[token])
            before = float(self.traces[i - 1].token_max.max()) if i else 0.0
            rows.append(
                LayerRow(
                    layer=trace.layer,
                    max=largest,
                    median=trace.median,
                    ratio=_ratio(largest, trace.median),
                    jump=largest / before if before else None,
                    text=text,
                    position=position,
                    token=self._string(token),
                    dim=int(trace.strongest.argmax()),
                    top_dims=trace.strongest.topk(min(4, len(trace.strongest))).indices.tolist(),
                    cosine_next=trace.cosine,
                )
            )
        return rows

    def _string(self, token: int) -> str:
        token_id = int(self.input_ids[tuple(self._positions[token])])
        if self.tokenizer is None:
            return str(token_id)
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def _emerges(self, layer: int, criterion: Criterion | None = None) -> bool:
        """Massive at the output of `layer` in a token that was not massive at its input."""
        criterion = criterion or self.criterion
        before, after = self.traces[layer], self.traces[layer + 1]
        now = criterion.is_massive(after.token_max, after.median)
        was = criterion.is_massive(before.token_max, before.median)
        jumped = after.token_max >= criterion.min_jump * before.token_max
        return bool((now & ~was & jumped).any())

    def _born(self, layer: int) -> Tensor:
        """Indices of the tokens that became massive at `layer`, strongest first."""
        after = self.traces[layer + 1]
        massive = self.criterion.is_massive(after.token_max, after.median)
        order = after.token_max.argsort(descending=True)
        return order[massive[order]]

    def _dims(self, layer: int) -> list[int]:
        """Dims that pass the criterion in a massive token at `layer`, strongest first."""
        trace, born = self.traces[layer + 1], self._born(layer)
        columns = trace.columns[born]
        massive = self.criterion.is_massive(columns, trace.median).any(0)
        strength = columns.amax(0)
        order = strength.argsort(descending=True)
        return [int(trace.dims[k]) for k in order if massive[k]][:MAX_MASSIVE_DIMS]

    def _column(self, layer: int, dim: int) -> Tensor:
        """|h[layer, :, dim]| [N]; zeros where it is not among the layer's largest dims."""
        trace = self.traces[layer + 1]
        where = (trace.dims == dim).nonzero()
        if not len(where):
            return torch.zeros(len(trace.token_max))
        return trace.columns[:, int(where[0])]

    def _alive(self, layer: int, born: Tensor, dims: list[int], later: int) -> bool:
        now = max(float(self._column(later, d)[born].max()) for d in dims)
        birth = max(float(self._column(layer, d)[born].max()) for d in dims)
        return now >= ALIVE_SHARE * birth

    def _persists(self, layer: int) -> bool:
        """Alive at the output of the next layer; there must be one that it can act on."""
        if layer + 1 >= len(self.decoder.blocks):
            return False
        return self._alive(layer, self._born(layer), self._dims(layer), layer + 1)

    def _by_ffn(self, layer: int) -> bool:
        return self._written_by_ffn(layer) >= 0.5

    def _written_by_ffn(self, layer: int) -> float:
        trace = self.traces[layer + 1]
        if trace.ffn_share is None:
            return math.nan
        dim = int(trace.strongest.argmax())
        return float(trace.ffn_share[(trace.dims == dim).nonzero()[0, 0]])

    def _fill(self, report: MELayerReport, layer: int) -> None:
        born, dims = self._born(layer), self._dims(layer)
        report.found, report.layer, report.dims = True, layer, dims
        report.magnitudes = [float(self._column(layer, d)[born].max()) for d in dims]
        later = range(layer + 1, len(self.decoder.blocks))
        dead = [i for i in later if not self._alive(layer, born, dims, i)]
        report.erased_at = dead[0] if dead else None
        ffn = self._written_by_ffn(layer)
        report.written_by = {"attention": 1 - ffn, "ffn": ffn}
        # The last layer's output enters no layer, so no gate looks at it.
        end = min(dead[0] if dead else len(self.traces) - 1, len(self.decoder.blocks) - 1)
        alive = range(layer, max(layer + 1, end))
        values = [torch.stack([self._column(i, d) for d in dims]) for i in alive]
        floor = max(1e-12, *(self.traces[i + 1].median for i in alive))  # a median may be 0
        split = separate(torch.stack(values), born, floor)
        # With nothing ordinary in the texts there is no ratio to report, but a threshold.
        report.separation = split.ratio if math.isfinite(split.ratio) else None
        report.separation_note = split.note
        report.thresholds = dict(zip(dims, split.thresholds, strict=False))
        report.tokens = [self._massive_token(int(t), layer) for t in split.tokens]
        report.norm = self._norm(layer, dims)
        report.probe_ids = self._probe_ids(int(born[0]))

    def _massive_token(self, token: int, layer: int) -> MassiveToken:
        text, position = self._positions[token].tolist()
        return MassiveToken(
            text=text,
            position=position,
            token_id=int(self.input_ids[text, position]),
            string=self._string(token),
            magnitude=float(self.traces[layer + 1].token_max[token]),
        )

    def _norm(self, layer: int, dims: list[int]) -> dict[str, Any] | None:
        """How the pre-FFN norm of the ME Layer weighs the massive dims: rank 0 is the heaviest."""
        norm = self.decoder.blocks[layer].ffn_norm
        if norm is None or getattr(norm, "weight", None) is None:
            return None
        scale = effective_scale(norm, f"Layer {layer}")
        ranks = {str(d): int((scale > scale[d]).sum()) for d in dims}  # JSON keys are strings
        energy = self.traces[layer + 1].strongest.double() ** 2
        share = energy / energy.sum()
        weighted = energy * scale.double() ** 2
        return {
            "ranks_of_massive_dims": ranks,
            "kl_from_uniform_before_norm": kl_from_uniform(share),
            "kl_from_uniform_after_norm": kl_from_uniform(weighted / weighted.sum()),
        }

    def _probe_ids(self, token: int) -> list[int]:
        """The calibration text of that token without its pads."""
        text = int(self._positions[token, 0])
        return self.input_ids[text][self.attention_mask[text].bool()].tolist()

    def _nearest_miss(self, emergences: list[int]) -> str:
        """Why there is no ME Layer, from the layer that came closest."""
        if emergences:
            layer = emergences[0]
            if not self._persists(layer):
                return f"Layer {layer} has massive activations that do not persist."
            share = self._written_by_ffn(layer)
            return f"Layer {layer} has massive activations, but its FFN wrote only {share:.0%}."
        if self.criterion.is_massive(self.traces[0].token_max, self.traces[0].median).any():
            return "The embedding output is massive already; no decoder layer creates it."
        best = max(self.traces, key=lambda t: _ratio(float(t.token_max.max()), t.median))
        largest = float(best.token_max.max())
        where = "the embedding output" if best.layer < 0 else f"layer {best.layer}"
        ratio = _ratio(largest, best.median)
        return (
            f"The nearest miss is {where}: largest {largest:.4g}, {ratio:.4g} times the median "
            f"{best.median:.3g}; needed: {self.criterion.describe()}."
        )

    def _other(self) -> str:
        """What the criterion that was not used would have said."""
        other = Criterion(name="relative" if self.criterion.name == "sun2024" else "sun2024")
        layers = [i for i in range(len(self.decoder.blocks)) if self._emerges(i, other)]
        said = f"massive activations first at layer {layers[0]}" if layers else "none"
        return f"{other.name} ({other.describe()}): {said}"


def _ratio(largest: float, median: float) -> float:
    return largest / median if median > 0 else math.inf


def _identity(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    return {
        "name": getattr(config, "_name_or_path", "") or type(model).__name__,
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "architecture": type(model).__name__,
    }
