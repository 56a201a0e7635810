"""Put the operator into a model and take it out again.

One mechanism for all architectures: the class of each softened decoder layer, and of its attention
module, becomes a subclass of itself. The layer looks at the residual that it is given and finds
the tokens; its attention softens its own input; both call `super().forward`. (The control
site=residual_stream softens what the layer itself is given.) Nothing is wrapped or renamed,
nothing is kept between forwards, so checkpoint recompute, packing, a KV cache, PEFT, torch.compile
and FSDP (which wraps by class name) see the module that they know.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from wemask.decoder.parts import Decoder, find_decoder, layer_index_error, unwrap, without_weights
from wemask.decoder.passage import checking_flow, evaluating
from wemask.detection.me_layer import MELayerReport, are_dims, layers_by_reason
from wemask.errors import ConfigError, DetectionError, PatchError
from wemask.operator.dims import choose_dims, choose_fill
from wemask.operator.handle import SoftenHandle, device_of, observe, probe_ids
from wemask.operator.layers import Observation, Softening
from wemask.operator.settings import WeMaskConfig

INVERTED_MASKS = ("mpt",)  # bool masks that are True where a key is hidden


class WeMaskWarning(UserWarning):
    """A legal choice whose result depends on padding, batch mates or the cache."""


def soften(
    model: nn.Module,
    report: MELayerReport | None = None,
    config: WeMaskConfig | None = None,
    *,
    dims: Mapping[int, Sequence[int]] | None = None,
    fill: Mapping[int, Sequence[float]] | None = None,
    learned: Mapping[int, float] | None = None,
    may_touch_nothing: bool = False,
) -> SoftenHandle:
    """Soften the attention input of massive tokens in `model`, in place, until removed.

    Save with `wemask.save`: `model.save_pretrained` writes plain weights, without the operator.

    Args:
        model: a transformers causal language model, also inside PEFT or torch.compile.
        report: from `wemask.detect`; may be None when layers, tokens and dims need no detection.
        config: default `WeMaskConfig()`.
        dims: per layer the dims of a saved softening, instead of choosing them anew.
        fill: per layer the values of a saved softening with fill=mean, likewise.
        learned: per layer the theta of a saved learnable strength, instead of its initial value.
        may_touch_nothing: of a saved softening, whose tokens training may have taken away.

    Returns:
        The handle: `with soften(...) as handle:` or `handle.remove()`.

    Raises:
        PatchError: the model is softened already, or the softening would touch no token, or no
            layer's gate tells massive tokens.
        DetectionError: the choices need an ME Layer and none was found, or the report is of another
            model.
        ModelError: no model, a part of the architecture was not found, or a layer does not exist.
        ConfigError: an argument of another kind.
    """
    _check_arguments(report, config, dims=dims, fill=fill, learned=learned)
    config = config or WeMaskConfig()
    base = unwrap(model)
    _check_patchable(base)
    decoder = find_decoder(base)
    vocabulary = base.get_input_embeddings().weight.shape[0]  # pyright: ignore
    report = _check_report(report, config, decoder, vocabulary)
    _check_places(base, report, config)
    chosen = resolve_layers(config, report, len(decoder.blocks))
    layers, left_alone = _tellable(config, report, chosen)
    _warn(config, report)
    if report is None:  # detection has looked already
        with evaluating(base), torch.no_grad(), checking_flow(decoder):
            base(input_ids=probe_ids(base, None)[:, :2], use_cache=False)
    handle = SoftenHandle(base, config, report)
    handle.left_alone = left_alone

    def seen() -> dict[int, Observation]:
        with handle.at_strength(0.0):
            return observe(handle, base)

    try:
        _install(handle, decoder, layers)
        if dims is None:
            _set_dims(handle, choose_dims(config, report, handle.layers, decoder, seen))
        else:
            _check_dims(dims, config, decoder, layers)
            _set_dims(handle, dims)
        _set_fill(handle, choose_fill(config, handle.dims, seen) if fill is None else fill)
        if learned:
            handle.learned = learned
        handle.look()
        handle.touched_first = handle.tokens_touched
        _check_touched(handle, may_touch_nothing)
    except BaseException:
        handle.uninstall()
        raise
    return handle


def _check_arguments(report: Any, config: Any, **by_layer: Any) -> None:
    """Raise ConfigError where an argument is not what it must be; say how to make it."""
    if isinstance(report, WeMaskConfig):
        raise ConfigError("The report comes before the config: type soften(model, config=config).")
    if report is not None and not isinstance(report, MELayerReport):
        raise ConfigError(
            f"The report must be what wemask.detect gives, got {report!r:.80}. Type "
            "MELayerReport.load(FILE) for a file of it, MELayerReport.from_dict(VALUES) for its "
            "values, or soften(model, config=WeMaskConfig(...)) for settings alone."
        )
    if config is not None and not isinstance(config, WeMaskConfig):
        raise ConfigError(
            f"The config must be a WeMaskConfig, got {config!r:.80}. Type "
            "WeMaskConfig.from_dict(VALUES), or WeMaskConfig(rate=0.001)."
        )
    for name, values in by_layer.items():
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{name} must be {{layer: ...}}, got {values!r:.80}.")


def _check_patchable(model: nn.Module) -> None:
    if getattr(model, "wemask_handle", None) is not None:
        raise PatchError(
            "This model is softened already. Call `model.wemask_handle.remove()` first, or work on "
            "a copy.deepcopy of the unsoftened model."
        )
    if without_weights(model):
        raise PatchError(
            "The model is on the meta device: it has shapes but no weights, so norm weights and "
            "massive tokens cannot be read. Load the weights first."
        )
    if (quantiser := getattr(model, "hf_quantizer", None)) is not None:
        # Norms stay unquantised under bitsandbytes and GPTQ, and only norms and hidden states are
        # read; the probe prompt then shows whether the softening fires.
        warnings.warn(
            f"The model is quantised ({type(quantiser).__name__}): detection and softening act on "
            "its dequantised hidden states. Detect on this very model.",
            WeMaskWarning,
            stacklevel=3,
        )


def _check_places(model: nn.Module, report: MELayerReport | None, config: WeMaskConfig) -> None:
    """Raise PatchError where a place in a document cannot be read from the model's masks."""
    position = config.position
    if position is None:
        return
    kind = getattr(model.config, "model_type", "")
    if kind in INVERTED_MASKS:
        raise PatchError(
            f"tokens={config.tokens} reads the attention mask, and that of {kind} marks what is "
            "hidden, not what is visible. Type tokens=massive."
        )
    if not position:
        return
    length = probe_ids(model, report).shape[1]
    place = f"tokens=wrong with seed={position - 1} is the token at place {position}"
    if position >= length:
        raise PatchError(
            f"The softening touches nothing: {place} of each document (the first is at place 0), "
            f"and the probe prompt has {length} tokens. Type operator.seed={max(0, length - 2)} or "
            "less."
        )
    text: Any = model.config.get_text_config(decoder=True)  # pyright: ignore
    if getattr(text, "attention_chunk_size", None):
        raise PatchError(
            f"{place}, but the layers of this model see chunks of {text.attention_chunk_size} "
            "tokens, and in each chunk a token would look like it. Type tokens=first."
        )
    window = getattr(text, "sliding_window", None)
    if window and position + 1 >= window:
        raise PatchError(
            f"{place}, but layers of this model see a sliding window of {window} tokens, in which "
            f"all later tokens look like it. Type operator.seed={max(0, window - 3)} or less."
        )


def _check_report(
    report: MELayerReport | None, config: WeMaskConfig, decoder: Decoder, vocabulary: int
) -> MELayerReport | None:
    if report is None or not report.found:
        if config.needs_report:
            call = "Call report = wemask.detect(model, tokenizer) first."
            found = call if report is None else report.verdict
            raise DetectionError(
                f"layers={config.layers}, tokens={config.tokens}, dims={config.dims} need a "
                f"detected ME Layer. {found} Give layers by number: layers=[2,3] tokens=first "
                "dims=attn_norm (with operator. before each on the command line)."
            )
        return report
    if report.hidden_size != decoder.hidden_size or report.num_layers != len(decoder.blocks):
        raise DetectionError(
            f"The report is of another model: {report.num_layers} layers of width "
            f"{report.hidden_size}, this one has {len(decoder.blocks)} of {decoder.hidden_size}. "
            "Run wemask.detect on this model."
        )
    if report.probe_ids and max(report.probe_ids) >= vocabulary:
        raise DetectionError(
            f"Its probe prompt has the token {max(report.probe_ids)}, the model has tokens 0 to "
            f"{vocabulary - 1}: the report is of another model. Run wemask.detect on this one."
        )
    return report


def _tellable(
    config: WeMaskConfig, report: MELayerReport | None, layers: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[int, str]]:
    """The layers whose gate tells massive tokens, and why the others are left alone.

    tokens=wrong, a control, leaves the same ones alone, for it has to have the same budget; but
    where there are no gates (before the ME Layer), it has no massive token to avoid.

    Raises:
        PatchError: no layer is left.
    """
    wrong = config.tokens == "wrong"
    if report is None or not config.uses_gates:
        return layers, {}
    alone = {}
    for layer in layers:
        gate = report.gates.get(layer)
        if gate is not None and (reason := gate.why_not(config.tokens)):
            alone[layer] = reason
        elif gate is None and not wrong:
            alone[layer] = "the report has no gate for it"
    left = tuple(layer for layer in layers if layer not in alone)
    if left or wrong:
        return (left, alone) if left else (layers, {})
    raise PatchError(
        f"Massive tokens cannot be told by content in any of the layers {list(layers)}: "
        f"{layers_by_reason(alone)}. Type tokens=first, or let detection read texts like those of "
        "the run: detection.texts=FILE (of the wemask command: --calibration FILE)."
    )


def resolve_layers(
    config: WeMaskConfig, report: MELayerReport | None, count: int
) -> tuple[int, ...]:
    """The layer numbers that `config.layers` means in a model of `count` layers.

    Raises:
        ModelError: a given number does not exist.
        PatchError: the choice is empty, e.g. `after_me` where the ME Layer is the last.
    """
    if config.explicit_layers is not None:
        for index in config.explicit_layers:
            if index >= count:
                raise layer_index_error(index, count)
            if config.by_content and report is not None and index <= (report.layer or 0):
                raise PatchError(
                    f"Layer {index} would touch nothing: no token is massive yet where it enters "
                    f"the ME Layer {report.layer} or one before it. Leave it out, or type "
                    "tokens=first."
                )
        return tuple(sorted(config.explicit_layers))
    assert report is not None and report.layer is not None
    me = report.layer
    choice = {
        "after_me": range(me + 1, count),
        "from_me": range(me, count),
        "next": range(me + 1, min(me + 2, count)),
        "before_me": range(me),
    }[str(config.layers)]
    if not choice:
        raise PatchError(
            f"layers={config.layers} is empty: the ME Layer is {me} of layers 0 to {count - 1}."
        )
    return tuple(choice)


def _warn(config: WeMaskConfig, report: MELayerReport | None) -> None:
    reasons = []
    if config.tokens == "position0":
        reasons.append(
            "tokens=position0 is index 0 of the tensor as given: under a KV cache every generated "
            "token, under left padding a pad (tokens=massive is neither)"
        )
    if config.dims == "batch_activation":
        reasons.append("dims=batch_activation makes a row's result depend on its batch mates")
    if report is None or not report.found:
        reasons.append("no ME Layer was detected: nothing says that these layers matter")
    if reasons:
        warnings.warn("WeMask: " + "; ".join(reasons) + ".", WeMaskWarning, stacklevel=3)


def _install(handle: SoftenHandle, decoder: Decoder, layers: tuple[int, ...]) -> None:
    config, report = handle.config, handle.report
    gates = report.gates if report is not None else {}
    if not config.uses_gates:
        gates = {}
    model: Any = handle.model
    model.wemask_handle = handle
    for index in layers:
        block = decoder.blocks[index]
        softening = Softening(
            index=index,
            config=config,
            budget=config.budget(decoder.hidden_size),
            thresholds=gates[index].of(config.tokens) if index in gates else {},
            norm_name=block.name_of(block.attention_norm),
            device=device_of(block.layer),
        )
        handle.install(block, softening)
        handle.layers.append(index)


def _check_dims(
    dims: Mapping[int, Sequence[int]],
    config: WeMaskConfig,
    decoder: Decoder,
    layers: tuple[int, ...],
) -> None:
    """Raise PatchError where given dims miss a softened layer, repeat or do not exist."""
    width = decoder.hidden_size
    # activation has none in a layer after the massive activation's end
    may_be_none = config.dims == "activation" and any(dims.values())
    for index in layers:
        given = dims.get(index)
        if given is None or not ((given or may_be_none) and are_dims(given, width)):
            raise PatchError(
                f"dims must give different dims from 0 to {width - 1} for each of the layers "
                f"{list(layers)}; for layer {index} it gives {given}."
            )


def _set_dims(handle: SoftenHandle, dims: Mapping[int, Sequence[int] | None]) -> None:
    for softening in handle.softenings():
        chosen = dims[softening.index]
        if chosen is not None:
            device = softening.massive_dims.device
            softening.dims = torch.tensor(chosen, dtype=torch.int64, device=device)
        handle.dims[softening.index] = None if chosen is None else list(chosen)


def _set_fill(handle: SoftenHandle, fill: Mapping[int, Sequence[float]]) -> None:
    if bool(fill) != (handle.config.fill == "mean"):
        raise PatchError(f"fill={handle.config.fill}, but values for {len(fill)} layers are given.")
    if not fill:
        return
    for softening in handle.softenings():
        values, dims = fill.get(softening.index, ()), softening.dims
        if dims is None or len(values) != len(dims):
            raise PatchError(
                f"fill must give a value for each softened dim of each of the layers "
                f"{handle.layers}; for layer {softening.index} it gives {len(values)}."
            )
        softening.fill = torch.tensor(values, dtype=torch.float32, device=dims.device)
        handle.fill[softening.index] = list(values)


def _check_touched(handle: SoftenHandle, may_touch_nothing: bool) -> None:
    """Raise PatchError where the softening touches nothing of the probe prompt."""
    if may_touch_nothing or any(handle.tokens_touched.values()):
        return
    hint = (
        "Massive tokens exist only after the ME Layer and before they are erased; run `wemask "
        "detect` to see where."
    )
    if handle.config.tokens == "wrong":
        hint = f"That at place {handle.config.position} is massive. Type another operator.seed."
    raise PatchError(
        f"The softening touches nothing: none of the layers {handle.layers} saw a token of "
        f"tokens={handle.config.tokens} on the probe prompt. {hint}"
    )
