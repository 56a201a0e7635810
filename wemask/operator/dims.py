"""Which dims a softened layer masks: read from norm weights, or observed on a probe prompt.

And what they go towards, where that is not zero: observed there too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Decoder, effective_scale
from wemask.decoder.passage import evaluating
from wemask.errors import PatchError
from wemask.operator.equation import top_dims
from wemask.operator.layers import Observation

if TYPE_CHECKING:
    from wemask.detection.me_layer import MELayerReport
    from wemask.operator.handle import SoftenHandle


def choose_dims(
    handle: "SoftenHandle", model: nn.Module, decoder: Decoder
) -> Mapping[int, Sequence[int] | None]:
    """The dims of every softened layer; None where `batch_activation` leaves them open."""
    config, k = handle.config, handle.config.budget(decoder.hidden_size)
    if config.dims == "batch_activation":
        return dict.fromkeys(handle.layers)
    if config.dims == "activation":
        for softening in handle.softenings():
            softening.dims = softening.massive_dims
        # All zero in a layer after the massive activation was erased: there the gate never fires.
        observed = _unsoftened(handle, model)
        scores = {i: o.scores.cpu() for i, o in observed.items() if o.scores is not None}
        return {i: top_dims(s, k).tolist() if s.any() else [] for i, s in scores.items()}
    if config.dims == "attn_norm":
        norms = {i: decoder.blocks[i].attention_norm for i in handle.layers}
        scales = {i: effective_scale(norm, f"Layer {i}") for i, norm in norms.items()}
        return {i: top_dims(scale, k).tolist() for i, scale in scales.items()}
    if config.dims == "massive":
        assert handle.report is not None
        gates = {i: handle.report.gates.get(i) for i in handle.layers}
        return {i: (gate.dims if gate else None) or handle.report.dims for i, gate in gates.items()}
    return dict.fromkeys(handle.layers, _common_dims(handle, decoder, k))


def _common_dims(handle: "SoftenHandle", decoder: Decoder, k: int) -> list[int]:
    """The dims of the choices that are the same in every layer."""
    config, report = handle.config, handle.report
    if config.dims == "random":
        return random_dims(decoder.hidden_size, k, config.seed)
    assert report is not None and report.layer is not None
    norm = decoder.blocks[report.layer].ffn_norm
    scale = effective_scale(norm, f"The ME Layer {report.layer}")
    return top_dims(-scale if config.dims == "lowest" else scale, k).tolist()


def random_dims(hidden_size: int, k: int, seed: int) -> list[int]:
    """The k dims of `dims=random`, each as likely as any other, the massive ones too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(hidden_size, generator=generator)[:k].tolist()


def choose_fill(handle: "SoftenHandle", model: nn.Module) -> dict[int, list[float]]:
    """The mean of each softened dim over the probe prompt's tokens, per layer; empty: zero.

    Raises:
        PatchError: a layer in which no token is softened there, so that there is no mean.
    """
    if handle.config.fill == "zero":
        return {}
    fill = {}
    for index, seen in _unsoftened(handle, model).items():
        if not seen.tokens or seen.total is None:
            raise PatchError(
                f"fill=mean has nothing to take the mean of in layer {index}: on the probe prompt "
                f"it saw no token of tokens={handle.config.tokens}. Leave the layer out, e.g. "
                "layers=next."
            )
        fill[index] = (seen.total[handle.dims[index]] / seen.tokens).tolist()
    return fill


def _unsoftened(handle: "SoftenHandle", model: nn.Module) -> dict[int, Observation]:
    with handle.at_strength(0.0):
        return observe(handle, model)


@contextmanager
def observing(
    handle: "SoftenHandle", mask: Tensor | None = None
) -> Iterator[dict[int, Observation]]:
    """Within it, each softened layer says what it touches; of pads (0 in the mask) nothing."""
    observed = {s.index: Observation(mask) for s in handle.softenings()}
    try:
        for softening in handle.softenings():
            softening.observed = observed[softening.index]
        yield observed
    finally:
        for softening in handle.softenings():
            softening.observed = None


@torch.no_grad()
def observe(
    handle: "SoftenHandle", model: nn.Module, input_ids: Tensor | None = None, **inputs: Any
) -> dict[int, Observation]:
    """Run a prompt (default: the report's) and say what each softened layer touched."""
    if input_ids is None:
        input_ids = probe_ids(model, handle.report)
    with observing(handle) as observed, evaluating(model):
        model(input_ids=input_ids, use_cache=False, **inputs)
    return observed


def probe_ids(model: nn.Module, report: "MELayerReport | None") -> Tensor:
    """Token ids [1, T] that show a massive token: the report's, else the first ids of the model."""
    embeddings = model.get_input_embeddings().weight  # pyright: ignore
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    if report is not None and report.probe_ids:
        return torch.tensor([report.probe_ids], device=device)
    return torch.arange(min(8, embeddings.shape[0]), device=device).unsqueeze(0)
