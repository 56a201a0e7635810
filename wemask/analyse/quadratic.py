"""The quadratic form of the ME Layer's gated FFN: the direction that makes a token massive.

Sun, Canziani, LeCun, Zhu: "The Spike, the Sparse and the Sink" (arXiv 2603.05498). Where its gate
is far open, what a gated FFN writes on dim k is about x' S_k x (`gated_form.py`). One large
eigenvalue lambda of S_k with direction s means: a token whose FFN input points along s becomes
massive on dim k, by about lambda (s . x)^2.

D is the hidden size, N the number of real tokens, K that of massive dims.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wemask.analyse.gated_form import GatedForm, LeadingPair
from wemask.decoder.ffn import FFNWeights, ffn_weights, shared_experts
from wemask.decoder.parts import Block, find_decoder, post_ffn_norm, unwrap, without_weights
from wemask.decoder.passage import evaluating, first_argument, first_output, rows_of
from wemask.detection.calibration import calibration_inputs
from wemask.detection.me_layer import MELayerReport
from wemask.errors import DetectionError, ModelError
from wemask.measure.measurement import primary_tokens


@dataclass(frozen=True, kw_only=True)
class TokenPrediction:
    """What the FFN writes on one massive dim for one massive token, observed and predicted."""

    dim: int
    text: int
    position: int
    token_id: int
    alignment: float
    """Cosine of the token's FFN input with the leading direction, -1 to 1."""
    observed: float
    """The FFN's output there, before a norm after it; of the shared experts in a mixture."""
    whole: float
    """x' S x: all of the form, gate taken for open."""
    leading: float
    """lambda (s . x)^2: its leading eigenpair alone."""
    exact: float | None = None
    """With the real activation and biases; None where the activation is not kept by the module."""


@dataclass(frozen=True, kw_only=True)
class DimForm:
    """The form of one massive dim, and how the tokens lie to its leading direction."""

    dim: int
    eigenvalue: float
    """The largest in absolute value, signed."""
    share: float
    """eigenvalue^2 / ||S||_F^2, 0 to 1: 1 where one direction is all there is."""
    massive_alignment: float
    """Mean |cosine| of massive tokens' FFN input with the direction."""
    ordinary_alignment: float | None
    """The same of ordinary tokens; None without any."""
    ordinary_alignment_max: float | None
    leading_over_observed: float | None
    """Sum over the massive tokens of `leading`, counted in the direction of `observed`, over that
    of |observed|; `whole` likewise. None where the FFN writes nothing there."""
    whole_over_observed: float | None
    massive_tokens: int
    ordinary_tokens: int
    direction: Tensor = field(repr=False, compare=False)
    """s, float32 [D] of length 1, turned so that massive tokens lie on its positive side."""


@dataclass(frozen=True, kw_only=True)
class QuadraticForm:
    """The quadratic form of a model's ME Layer, on given texts."""

    layer: int
    experts: int
    """Shared experts that the form sums over, in a mixture; 0 where the FFN is dense."""
    biases: bool
    """True where gate or up have biases, which the form ignores; `exact` has them."""
    post_norm: str | None
    """The norm between FFN and residual, if any: what is observed and predicted goes into it."""
    dims: list[DimForm]
    tokens: list[TokenPrediction]

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per massive dim and massive token."""
        return [dict(vars(token)) for token in self.tokens]

    def dim_rows(self) -> list[dict[str, Any]]:
        """One plain dict per massive dim, without the direction."""
        return [{k: v for k, v in vars(form).items() if k != "direction"} for form in self.dims]


@torch.no_grad()
def quadratic_form(
    model: nn.Module, report: MELayerReport, input_ids: Tensor, attention_mask: Tensor | None = None
) -> QuadraticForm:
    """The form of the ME Layer that `report` names, held against what its FFN does on given texts.

    Args:
        model: the transformers causal language model of the report, in any dtype, also under
            `device_map`.
        report: with an ME Layer and a gate.
        input_ids: [B, T], with a massive token.
        attention_mask: [B, T], 1 for real tokens; default all.

    Raises:
        DetectionError: no ME Layer, no gate, no massive token in the texts, or a report of
            another model.
        ModelError: an FFN without a gate, a mixture without shared experts, or weights that are
            not there, packed, or under an adapter.
    """
    base = unwrap(model)
    block, hidden_size = _me_layer(base, report)
    parts, experts = _gated_parts(base, block, hidden_size)
    ids, mask = calibration_inputs(None, input_ids, attention_mask)
    seen = _observe(base, parts, report, ids, mask)
    with _weights_present(parts):  # found anew: accelerate has put the real ones in their place
        parts, _ = _gated_parts(base, block, hidden_size)
        form = GatedForm.of(parts, report.dims)
        exact = _exact(parts, report.dims, seen.x[seen.massive].to(form.gate.device))
    places = mask.cpu().bool().nonzero()[seen.massive]  # [massive tokens, 2]: text and position
    token_ids = ids.cpu()[places[:, 0], places[:, 1]]
    dims, tokens = [], []
    for k, dim in enumerate(report.dims):
        pair = form.leading(k)
        whole, leading = (values.cpu() for values in form.predict(k, pair, seen.x[seen.massive]))
        observed = seen.written[seen.massive, k]
        dims.append(_dim_form(dim, pair, seen, observed, whole, leading))
        tokens += _token_predictions(
            dim,
            text=places[:, 0],
            position=places[:, 1],
            token_id=token_ids,
            alignment=seen.cosine(dims[-1].direction)[seen.massive],
            observed=observed,
            whole=whole,
            leading=leading,
            exact=None if exact is None else exact[:, k],
        )
    return QuadraticForm(
        layer=block.index,
        experts=experts,
        biases=any(p.gate_bias is not None or p.up_bias is not None for p in parts),
        post_norm=block.name_of(post_ffn_norm(block)),
        dims=dims,
        tokens=tokens,
    )


def _me_layer(model: nn.Module, report: MELayerReport) -> tuple[Block, int]:
    if not report.found or report.layer is None:
        raise DetectionError(
            "The report names no ME Layer, so there is no quadratic form to look at. "
            + report.verdict
        )
    if report.clearest_gate() is None:
        raise DetectionError(
            "No layer has a gate, so massive tokens cannot be told from the others: "
            + report.why_not_told()
        )
    if without_weights(model):
        raise ModelError("The model is on the meta device: it has no weights. Load them first.")
    decoder = find_decoder(model)
    layers, width = len(decoder.blocks), decoder.hidden_size
    if (layers, width) != (report.num_layers, report.hidden_size):
        raise DetectionError(
            f"The report is of a model of {report.num_layers} layers, {report.hidden_size} wide; "
            f"this one has {layers} layers and is {width} wide. Detect again on this model."
        )
    return decoder.blocks[report.layer], decoder.hidden_size


def _gated_parts(model: nn.Module, block: Block, hidden_size: int) -> tuple[list[FFNWeights], int]:
    """The FFNs whose form is taken, and how many shared experts they are."""
    name = f"Layer {block.index} of {type(model).__name__}"
    shared = shared_experts(block, hidden_size)
    parts = shared or ffn_weights(block, hidden_size)
    if any(p.gate is None for p in parts):
        raise ModelError(
            f"{name} has a plain FFN: without a gate there is no product of two projections, and "
            "so no quadratic form."
        )
    if not shared and (len(parts) > 1 or parts[0].expert is not None):
        raise ModelError(
            f"{name} is a mixture of {len(parts)} routed experts without a shared one. Which of "
            "them a token meets differs, so the quadratic form is not defined."
        )
    return parts, len(shared)


@contextmanager
def _weights_present(parts: Sequence[FFNWeights]) -> Iterator[None]:
    """Within it, weights that accelerate keeps elsewhere (device_map) are in their modules."""
    hooked = [m for part in parts for m in part.module.modules() if hasattr(m, "_hf_hook")]
    with ExitStack() as stack:
        if hooked:
            from accelerate.utils import align_module_device

            for module in hooked:
                stack.enter_context(align_module_device(module))
        yield


@dataclass(frozen=True)
class _Seen:
    """What one forward pass showed of the real tokens, on the CPU."""

    x: Tensor  # FFN input, float32 [N, D]
    written: Tensor  # FFN output on the massive dims, float32 [N, K]
    massive: Tensor  # bool [N]

    def cosine(self, direction: Tensor) -> Tensor:
        """Of every token's FFN input with `direction`, [N]."""
        return nn.functional.cosine_similarity(self.x, direction.cpu()[None], dim=-1)


def _observe(
    model: nn.Module, parts: Sequence[FFNWeights], report: MELayerReport, ids: Tensor, mask: Tensor
) -> _Seen:
    """Run the texts once, and keep what the FFN reads and writes at the real tokens."""
    device = model.get_input_embeddings().weight.device  # pyright: ignore
    ids, mask = ids.to(device), mask.to(device)
    places = mask.cpu().bool().flatten().nonzero().flatten()
    x, written = list[Tensor](), list[Tensor]()

    def read(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x.append(rows_of(first_argument(args, kwargs), places))

    def wrote(module: nn.Module, args: tuple, output: Any) -> None:
        # Indexing copies: Llama-4 adds the routed experts to the shared one's output in place.
        written.append(rows_of(first_output(output), places)[:, report.dims])

    with ExitStack() as hooks, evaluating(model):
        for part in parts:
            before = part.module.register_forward_pre_hook(read, with_kwargs=True)
            for hook in (before, part.module.register_forward_hook(wrote)):
                hooks.enter_context(hook)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    massive = primary_tokens(model, report, ids, mask).flatten()[places]
    if not massive.any():
        raise DetectionError(
            f"No token of the given texts is massive after layer {report.layer}. Give "
            "texts like those of detection, e.g. `report.probe_ids`."
        )
    return _Seen(x[0], torch.stack(written).sum(0), massive)


def _exact(parts: Sequence[FFNWeights], dims: Sequence[int], x: Tensor) -> Tensor | None:
    """What the FFN writes on `dims` for x [n, D], by its own formula in float32: [n, K], CPU."""
    total = torch.zeros(len(x), len(dims), device=x.device)
    for part in parts:
        if part.activation is None or part.gate is None:
            return None
        gate, up = x @ part.gate.float().T, x @ part.up.float().T
        gate = gate if part.gate_bias is None else gate + part.gate_bias.float()
        up = up if part.up_bias is None else up + part.up_bias.float()
        total += (part.activation(gate) * up) @ part.down[list(dims)].float().T
        if part.down_bias is not None:
            total += part.down_bias[list(dims)].float()
    return total.cpu()


def _token_predictions(dim: int, **columns: Tensor | None) -> list[TokenPrediction]:
    """From the values of each field, [massive tokens]; None leaves a field as it is."""
    given: dict[str, Any] = {name: of.tolist() for name, of in columns.items() if of is not None}
    rows = (dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True))
    return [TokenPrediction(dim=dim, **row) for row in rows]


def _dim_form(
    dim: int, pair: LeadingPair, seen: _Seen, observed: Tensor, whole: Tensor, leading: Tensor
) -> DimForm:
    massive, cosine = seen.massive, seen.cosine(pair.direction)
    turned = -1.0 if float(cosine[massive].sum()) < 0 else 1.0
    ordinary, total = cosine[~massive].abs(), float(observed.abs().sum())
    parts = [
        float((predicted * observed.sign()).sum()) / total if total else None
        for predicted in (leading, whole)
    ]
    return DimForm(
        dim=dim,
        eigenvalue=pair.eigenvalue,
        share=pair.share,
        massive_alignment=float(cosine[massive].abs().mean()),
        ordinary_alignment=float(ordinary.mean()) if len(ordinary) else None,
        ordinary_alignment_max=float(ordinary.max()) if len(ordinary) else None,
        leading_over_observed=parts[0],
        whole_over_observed=parts[1],
        massive_tokens=int(massive.sum()),
        ordinary_tokens=len(ordinary),
        direction=turned * pair.direction.cpu(),
    )
