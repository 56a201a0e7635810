"""Which dims a softened layer masks: read from norm weights, or observed on a probe prompt.

And what they go towards, where that is not zero: observed there too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from wemask.decoder.parts import Decoder, effective_scale
from wemask.errors import PatchError
from wemask.operator.equation import top_dims
from wemask.operator.layers import Observation
from wemask.operator.settings import WeMaskConfig

if TYPE_CHECKING:
    from wemask.detection.me_layer import MELayerReport

Observe = Callable[[], Mapping[int, Observation]]
"""What each softened layer sees on the probe prompt, before anything is softened."""


def choose_dims(
    config: WeMaskConfig,
    report: "MELayerReport | None",
    layers: Sequence[int],
    decoder: Decoder,
    observe: Observe,
) -> Mapping[int, Sequence[int] | None]:
    """The dims of every softened layer; None where `batch_activation` leaves them open."""
    k = config.budget(decoder.hidden_size)
    if config.dims == "batch_activation":
        return dict.fromkeys(layers)
    if config.dims == "activation":
        # All zero in a layer after the massive activation was erased: there the gate never fires.
        scores = {i: o.scores.cpu() for i, o in observe().items() if o.scores is not None}
        return {i: top_dims(s, k).tolist() if s.any() else [] for i, s in scores.items()}
    if config.dims == "attn_norm":
        norms = {i: decoder.blocks[i].attention_norm for i in layers}
        scales = {i: effective_scale(norm, f"Layer {i}") for i, norm in norms.items()}
        return {i: top_dims(scale, k).tolist() for i, scale in scales.items()}
    if config.dims == "massive":
        assert report is not None
        gates = {i: report.gates.get(i) for i in layers}
        return {i: (gate.dims if gate else None) or report.dims for i, gate in gates.items()}
    if config.dims == "random":
        return dict.fromkeys(layers, random_dims(decoder.hidden_size, k, config.seed))
    assert report is not None and report.layer is not None
    norm = decoder.blocks[report.layer].ffn_norm
    scale = effective_scale(norm, f"The ME Layer {report.layer}")
    dims = top_dims(-scale if config.dims == "lowest" else scale, k)
    return dict.fromkeys(layers, dims.tolist())


def random_dims(hidden_size: int, k: int, seed: int) -> list[int]:
    """The k dims of `dims=random`, each as likely as any other, the massive ones too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(hidden_size, generator=generator)[:k].tolist()


def choose_fill(
    config: WeMaskConfig, dims: Mapping[int, list[int] | None], observe: Observe
) -> dict[int, list[float]]:
    """The mean of each softened dim over the probe prompt's tokens, per layer; empty: zero.

    Raises:
        PatchError: a layer in which no token is softened there, so that there is no mean.
    """
    if config.fill == "zero":
        return {}
    fill = {}
    for index, seen in observe().items():
        if not seen.tokens or seen.total is None:
            raise PatchError(
                f"fill=mean has nothing to take the mean of in layer {index}: on the probe prompt "
                f"it saw no token of tokens={config.tokens}. Leave the layer out, e.g. layers=next."
            )
        # batch_activation, which has no dims of its own, has no fill either: settings refuse it
        fill[index] = (seen.total[dims[index] or []] / seen.tokens).tolist()
    return fill
