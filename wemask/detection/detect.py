"""Find the ME Layer: the decoder layer whose FFN gives birth to massive activations.

One forward pass over a few short texts. Each layer leaves only reductions behind (largest value,
median, the columns of its largest dims), never its hidden states. From them:

    massive (sun2024)   |h[l,t,d]| > 100  and  >= 1000 * median |h[l]|      (arXiv 2402.17762)
    massive (relative)  |h[l,t,d]| >= min_ratio * median |h[l]|             (small models)
    emergence           a layer whose FFN makes tokens massive that were 5 times smaller before
    ME Layer            the first emergence that reaches half of the plateau (`emergence.py`)
    gate                of each later layer: thresholds that tell massive tokens (`gates.py`)

N is the number of real tokens of the calibration texts, D the hidden size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Decoder, effective_scale, find_decoder, unwrap, without_weights
from wemask.decoder.sharded import is_sharded, shape
from wemask.detection.calibration import calibration_inputs, halves
from wemask.detection.emergence import erased_at, find_births, growth, jumps
from wemask.detection.gates import States, leading, make_gate, primary_tokens
from wemask.detection.me_layer import (
    Criterion,
    Emergence,
    Gate,
    LayerRow,
    MassiveToken,
    MELayerReport,
)
from wemask.detection.tracing import Trace, trace_layers
from wemask.errors import DetectionError, ModelError, nearest

SHOWN_TOKENS = 64  # of an emergence: kept in the report


def detect(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    texts: Sequence[str] | None = None,
    chats: bool = True,
    examples: Iterable[Sequence[int]] = (),
    criterion: Criterion | str | None = None,
    **thresholds: float,
) -> MELayerReport:
    """Find where massive activations are born in `model`.

    Args:
        model: a transformers causal language model, unsoftened or at strength 0, in any dtype, also
            sharded by `device_map`; by ZeRO-3 or FSDP2: then all ranks must come here together.
        tokenizer: for `texts`; not needed with `input_ids`.
        input_ids: calibration token ids [B, T] instead of texts.
        attention_mask: 1 for real tokens [B, T]; default all.
        texts: calibration texts; default 38 diverse ones.
        chats: read each text through the tokenizer's chat template, too, where it has one.
        examples: token ids of further texts, e.g. of the data that will be trained on.
        criterion: `sun2024`, `relative`, or a `Criterion`; default what the model's own config
            says (`config.wemask_criterion`, in small models such as `tiny`), else `sun2024`.
        **thresholds: fields of `Criterion`, e.g. `min_ratio=50` for `relative`.

    Returns:
        The report; `report.found` is False, with the nearest miss, where there is no ME Layer.

    Raises:
        DetectionError: no input, wrong kinds or shapes, another model's tokenizer, or a softened
            model.
        ModelError: no model, or a part of the architecture was not found.
    """
    base = unwrap(model)
    handle = getattr(base, "wemask_handle", None)
    if handle is not None and any(handle.strengths.values()):
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
    input_ids, attention_mask = calibration_inputs(
        tokenizer, input_ids, attention_mask, texts, chats=chats, examples=examples
    )
    embedding: Tensor = base.get_input_embeddings().weight  # pyright: ignore
    size, device = shape(embedding)[0], embedding.device
    if outside := input_ids[(input_ids < 0) | (input_ids >= size)].tolist():
        raise DetectionError(
            f"Token id {outside[0]} is not in the model's vocabulary of {size}. Is this the "
            "model's own tokenizer?"
        )
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    traces = trace_layers(model, decoder, input_ids, attention_mask, criterion)
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
    known = list(Criterion.__dataclass_fields__)
    if unknown := [key for key in thresholds if key not in known]:
        raise DetectionError(
            f"detect has no argument {unknown[0]!r}; thresholds are {', '.join(known)}."
            + nearest(unknown[0], known)
        )
    given = {"name": criterion} if isinstance(criterion, str) else criterion
    if not isinstance(given, dict) or not given.keys() <= {*known}:
        raise DetectionError(
            "criterion (of a model's config.json: wemask_criterion) is sun2024, relative, or has "
            f"settings of its own, {', '.join(known)}; got {given!r:.200}."
        )
    return Criterion(**{**given, **thresholds})


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

    def __post_init__(self) -> None:
        self._positions = self.attention_mask.bool().nonzero().cpu()  # [N, 2]: text, position
        self._half = halves(self._positions[:, 0])
        self._maxima = torch.stack([trace.token_max for trace in self.traces])  # [L + 1, N]
        self._medians = torch.tensor([trace.median for trace in self.traces])
        shares = [trace.newborn_by_ffn for trace in self.traces[1:]]
        by_ffn = torch.tensor([share is None or share >= 0.5 for share in shares])
        self._births = find_births(self._maxima, self._medians, self.criterion, by_ffn)

    def report(self) -> MELayerReport:
        config: Any = self.model.config
        report = MELayerReport(
            model={
                "name": getattr(config, "_name_or_path", "") or type(self.model).__name__,
                "revision": getattr(config, "_commit_hash", None),
                "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
                "architecture": type(self.model).__name__,
            },
            num_layers=len(self.decoder.blocks),
            hidden_size=self.decoder.hidden_size,
            criterion=self.criterion,
            layers=self._rows(),
            relief=torch.stack([t.strongest for t in self.traces]),
        )
        report.other_criterion = self._other()
        if (layer := self._births.me_layer) is not None:
            self._fill(report, layer)
        else:
            report.nearest_miss = self._nearest_miss()
            strongest = self.traces[-1].token_max.argsort(descending=True, stable=True)
            report.probe_ids = self._probe_ids(strongest.tolist())
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

    def _fill(self, report: MELayerReport, layer: int) -> None:
        primary = primary_tokens(self._maxima, self._medians, self._births, self.criterion)
        dims = self._dims(layer, primary)
        columns = self.traces[layer + 1]
        where = [int((columns.dims == d).nonzero()[0, 0]) for d in dims]
        report.found, report.layer, report.dims = True, layer, dims
        report.magnitudes = columns.columns[primary][:, where].amax(0).tolist()
        report.tokens = [self._massive_token(t, layer) for t in self._strongest(primary, layer)]
        report.erased_at = erased_at(self._maxima[:, primary], layer)
        report.emergences = [
            self._emergence(e, primary if e == layer else self._births.born[e])
            for e in self._births.layers
        ]
        report.gates = self._gates(layer, primary, report.erased_at)
        ffn = self._written_by_ffn(layer)
        report.written_by = None if math.isnan(ffn) else {"attention": 1 - ffn, "ffn": ffn}
        report.norm = self._norm(layer, dims)
        report.probe_ids = self._probe_ids(self._strongest(primary, layer))

    def _dims(self, layer: int, tokens: Tensor) -> list[int]:
        """Dims in which these tokens lead at the output of `layer`, strongest first."""
        trace = self.traces[layer + 1]
        columns = leading(trace.columns, tokens, self.criterion.level(trace.median))
        return trace.dims[columns].tolist()

    def _strongest(self, tokens: Tensor, layer: int) -> list[int]:
        places = tokens.nonzero().flatten()
        order = self._maxima[layer + 1][places].argsort(descending=True, stable=True)
        return places[order].tolist()

    def _emergence(self, layer: int, born: Tensor) -> Emergence:
        trace, tokens = self.traces[layer + 1], self._strongest(born, layer)
        once = {self._string(token): token for token in reversed(tokens)}
        shown = [self._massive_token(token, layer) for token in once.values()]
        assert self._births.me_layer is not None
        here, there = trace.newborn_state, self.traces[self._births.me_layer + 1].newborn_state
        assert here is not None and there is not None
        return Emergence(
            layer=layer,
            tokens=sorted(shown, key=lambda token: -token.magnitude)[:SHOWN_TOKENS],
            count=len(tokens),
            dims=self._dims(layer, born),
            magnitude=float(trace.token_max[born].max()),
            erased_at=erased_at(self._maxima[:, born], layer),
            alignment=float(nn.functional.cosine_similarity(here, there, dim=0)),
        )

    def _gates(self, me_layer: int, primary: Tensor, erased: int | None) -> dict[int, Gate]:
        """For every layer after the ME Layer."""
        gates = {}
        for layer in range(me_layer + 1, len(self.decoder.blocks)):
            trace = self.traces[layer]  # what enters it
            if erased is not None and layer > erased:
                gates[layer] = Gate(dims=[], note=f"erased at layer {erased}")
                continue
            level = self.criterion.level(trace.median)
            born = self._births.born[:layer].any(0)
            columns = leading(trace.columns, primary | (born & (trace.token_max >= level)), level)
            states = States(
                values=trace.columns[:, columns].amax(1),
                primary=primary,
                half=self._half,
                level=level,
                floor=max(1e-12, trace.median),  # a median may be 0
            )
            gates[layer] = make_gate(states, trace.dims[columns].tolist())
        return gates

    def _written_by_ffn(self, layer: int) -> float:
        trace = self.traces[layer + 1]
        if trace.ffn_share is None:
            return math.nan
        dim = int(trace.strongest.argmax())
        return float(trace.ffn_share[(trace.dims == dim).nonzero()[0, 0]])

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
        if norm is None or getattr(norm, "weight", None) is None or is_sharded(norm.weight):
            return None
        scale = effective_scale(norm, f"Layer {layer}")
        ranks = {str(d): int((scale > scale[d]).sum()) for d in dims}  # JSON keys are strings
        energy = self.traces[layer + 1].strongest.double() ** 2
        share = energy / energy.sum()
        weighted = energy * scale.double() ** 2
        return {
            "ranks_of_massive_dims": ranks,
            "kl_from_uniform_before_norm": _kl_from_uniform(share),
            "kl_from_uniform_after_norm": _kl_from_uniform(weighted / weighted.sum()),
        }

    def _probe_ids(self, tokens: Sequence[int]) -> list[int]:
        """The text of the first of these tokens, without pads; one of two tokens if there is."""
        texts = self._positions[tokens, 0].tolist()
        longer = (text for text in texts if self.attention_mask[text].bool().sum() > 1)
        text = next(longer, texts[0])
        return self.input_ids[text][self.attention_mask[text].bool()].tolist()

    def _nearest_miss(self) -> str:
        """Why there is no ME Layer, from the layer that came closest."""
        medians = self._medians[1:, None]
        born = jumps(self._maxima[:-1], self._maxima[1:], medians, self.criterion).any(1)
        if born.any():
            layer = int(born.nonzero()[0])
            by_ffn = self.traces[layer + 1].newborn_by_ffn
            if by_ffn is not None and by_ffn < 0.5:
                share = self._written_by_ffn(layer)
                return f"Layer {layer} has massive activations, but its FFN wrote only {share:.0%}."
            if layer == len(born) - 1:
                return f"Layer {layer}, the last, has massive activations, which act on nothing."
            return f"Layer {layer} has massive activations that do not persist."
        if self.criterion.is_massive(self._maxima[0], self._medians[0]).any():
            return "The embedding output is massive already; no decoder layer creates it."
        if (layer := growth(self._maxima, self._medians, self.criterion)) is not None:
            return (
                f"From layer {layer} on there are massive activations that grew step by step: no "
                f"layer made them {self.criterion.min_jump:g} times larger."
            )
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
        found = find_births(self._maxima, self._medians, other).me_layer
        said = "no ME Layer" if found is None else f"ME Layer {found}"
        return f"{other.name} ({other.describe()}): {said}"


def _ratio(largest: float, median: float) -> float:
    return largest / median if median > 0 else math.inf


def _kl_from_uniform(shares: Tensor) -> float:
    """In nats, as `wemask.measure.metrics` defines it, which is built on this room."""
    return math.log(len(shares)) - float(torch.special.entr(shares).sum())
