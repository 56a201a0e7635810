"""Put the operator into a model and take it out again.

One mechanism for all architectures: the class of each softened decoder layer, and of its attention
module, becomes a subclass of itself. The layer looks at the residual that it is given and finds
the tokens; its attention softens its own input; both call `super().forward`. Nothing is wrapped
or renamed, nothing is kept between forwards, so checkpoint recompute, packing, a KV cache, PEFT,
torch.compile and FSDP (which wraps by class name) see the module that they know.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wemask.architectures import (
    Block,
    Decoder,
    check_flow,
    find_decoder,
    layer_index_error,
    unwrap,
)
from wemask.dims import choose_dims, observe, probe_ids
from wemask.errors import ConfigError, DetectionError, PatchError
from wemask.operator import WeMaskConfig, check_strength
from wemask.softened import (
    SoftenedAttention,
    SoftenedLayer,
    Softening,
    restore_class,
    softened_class,
    swap_class,
)
from wemask.tracing import evaluating

if TYPE_CHECKING:
    from wemask.me_layer import MELayerReport


INVERTED_MASKS = ("mpt",)  # bool masks that are True where a key is hidden


class WeMaskWarning(UserWarning):
    """A legal choice whose result depends on padding, batch mates or the cache."""


class SoftenHandle:
    """A softened model: what was touched, and the way back.

    Use it as a context manager, or call `remove()`.

    Attributes:
        config: the settings.
        report: the detected ME Layer, or None when everything was given by number.
        layers: the softened layers.
        dims: per layer the softened dims; None where they are chosen anew in each forward.
        tokens_touched: per layer, how many tokens of the probe prompt were softened.
    """

    def __init__(
        self, model: nn.Module, config: WeMaskConfig, report: "MELayerReport | None"
    ) -> None:
        self.config = config
        self.report = report
        self.layers: list[int] = []
        self.dims: dict[int, list[int] | None] = {}
        self.tokens_touched: dict[int, int] = {}
        self._model = model
        self._blocks: list[Block] = []

    @property
    def strength(self) -> float:
        """The strength in force; the mean over the softened layers where it is learned."""
        return sum(self.strengths.values()) / len(self.strengths)

    @property
    def strengths(self) -> dict[int, float]:
        """The strength in force, per softened layer."""
        return {
            softening.index: float(torch.as_tensor(softening.s()).detach())
            for softening in self.softenings()
        }

    @property
    def learned(self) -> dict[int, float]:
        """The trained theta per softened layer; empty unless the strength is learnable.

        Setting it raises PatchError where a layer is missing.
        """
        return {s.index: float(s.theta.detach()) for s in self.softenings() if s.theta is not None}

    @learned.setter
    def learned(self, values: Mapping[int, float]) -> None:
        thetas = {s.index: s.theta for s in self.softenings() if s.theta is not None}
        if thetas.keys() != values.keys():
            raise PatchError(
                f"Learned strengths were given for the layers {sorted(values)}; this softening "
                f"learns one for each of {sorted(thetas)}."
            )
        with torch.no_grad():
            for index, theta in thetas.items():
                theta.fill_(values[index])

    def set_strength(self, strength: float) -> None:
        """Change s in all softened layers, between forwards; a learned one is set aside.

        Raises:
            ConfigError: it is no number from 0 to 1.
            PatchError: the softening was removed.
        """
        strength = check_strength(strength)
        for softening in self.softenings():
            softening.strength = strength

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Run a block with another strength; the one in force, also a learned one, comes back."""
        before = [(softening, softening.strength) for softening in self.softenings()]
        self.set_strength(strength)
        try:
            yield
        finally:
            for softening, value in before:
                softening.strength = value

    def softenings(self) -> list[Softening]:
        if not self._blocks:
            raise PatchError("This softening was removed. Call wemask.soften again.")
        return [b.attention.softening for b in self._blocks]  # pyright: ignore[reportReturnType]

    def remove(self) -> None:
        """Take the softening out; the model is then what it was, bit for bit.

        Raises:
            PatchError: it was removed before.
        """
        if getattr(self._model, "wemask_handle", None) is not self:
            raise PatchError("This softening was removed before. Call wemask.soften again.")
        self._unpatch()

    def _patch(self, block: Block, softening: Softening) -> None:
        name = str(_name(block.layer, block.attention))
        block.attention.softening = softening
        self._blocks.append(block)
        for module, mixin in ((block.layer, SoftenedLayer), (block.attention, SoftenedAttention)):
            swap_class(module, softened_class(mixin, type(module), name))

    def _unpatch(self) -> None:
        for block in self._blocks:
            for module in (block.layer, block.attention):
                if isinstance(module, (SoftenedLayer, SoftenedAttention)):
                    restore_class(module)
            del block.attention.softening
        self._blocks = []
        if getattr(self._model, "wemask_handle", None) is self:
            del self._model.wemask_handle

    def __enter__(self) -> "SoftenHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if getattr(self._model, "wemask_handle", None) is self:  # not removed inside the block
            self.remove()

    def __repr__(self) -> str:
        return f"SoftenHandle(layers={self.layers}, tokens_touched={self.tokens_touched})"


def soften(
    model: nn.Module,
    report: "MELayerReport | None" = None,
    config: WeMaskConfig | None = None,
    *,
    dims: Mapping[int, Sequence[int]] | None = None,
    learned: Mapping[int, float] | None = None,
) -> SoftenHandle:
    """Soften the attention input of massive tokens in `model`, in place, until removed.

    Save with `wemask.save`: `model.save_pretrained` writes plain weights, without the operator.

    Args:
        model: a transformers causal language model, also inside PEFT or torch.compile.
        report: from `wemask.detect`; may be None when layers, tokens and dims need no detection.
        config: default `WeMaskConfig()`.
        dims: per layer the dims of a saved softening, instead of choosing them anew.
        learned: per layer the theta of a saved learnable strength, instead of its initial value.

    Returns:
        The handle: `with soften(...) as handle:` or `handle.remove()`.

    Raises:
        PatchError: the model is softened already, or the softening would touch no token.
        DetectionError: the choices need an ME Layer and none was found, or tokens do not separate.
        ModelError: a part of the architecture was not found, or a layer does not exist.
    """
    if isinstance(report, WeMaskConfig):
        raise ConfigError("The report comes before the config: type soften(model, config=config).")
    config = config or WeMaskConfig()
    base = unwrap(model)
    _check_patchable(base)
    decoder = find_decoder(base)
    report = _check_report(report, config, decoder)
    _check_masks(base, config)
    layers = resolve_layers(config, report, len(decoder.blocks))
    _warn(config, report)
    if report is None:  # detection has looked already
        with evaluating(base), torch.no_grad():
            check_flow(base, decoder, probe_ids(base, None)[:, :2])
    handle = SoftenHandle(base, config, report)
    try:
        _install(handle, decoder, layers)
        _check_dims(dims, decoder, layers)
        _set_dims(handle, choose_dims(handle, base, decoder) if dims is None else dims)
        if learned:
            handle.learned = learned
        handle.tokens_touched = _probe(handle, base)
        _check_fires(handle)
    except BaseException:
        handle._unpatch()
        raise
    return handle


def _check_patchable(model: nn.Module) -> None:
    if getattr(model, "wemask_handle", None) is not None:
        raise PatchError(
            "This model is softened already. Call `model.wemask_handle.remove()` first, or work on "
            "a copy.deepcopy of the unsoftened model."
        )
    if any(p.is_meta for p in model.parameters()) and not hasattr(model, "hf_device_map"):
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


def _check_masks(model: nn.Module, config: WeMaskConfig) -> None:
    kind = getattr(model.config, "model_type", "")
    if config.tokens == "first" and kind in INVERTED_MASKS:
        raise PatchError(
            f"tokens=first reads the attention mask, and that of {kind} marks what is hidden, not "
            "what is visible. Type tokens=massive."
        )


_NO_REPORT = "Call report = wemask.detect(model, tokenizer) first."


def _check_report(
    report: "MELayerReport | None", config: WeMaskConfig, decoder: Decoder
) -> "MELayerReport | None":
    if report is None or not report.found:
        if config.needs_report:
            found = _NO_REPORT if report is None else report.verdict
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
    if config.tokens == "massive" and not report.thresholds:
        raise DetectionError(
            f"Massive tokens cannot be told by content: {report.separation_note} Type tokens=first."
        )
    return report


def resolve_layers(
    config: WeMaskConfig, report: "MELayerReport | None", count: int
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
            if config.tokens == "massive" and report is not None and index <= (report.layer or 0):
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


def _warn(config: WeMaskConfig, report: "MELayerReport | None") -> None:
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
    thresholds = report.thresholds if report is not None and config.tokens == "massive" else {}
    model: Any = handle._model
    model.wemask_handle = handle
    for index in layers:
        block = decoder.blocks[index]
        softening = Softening(
            index=index,
            config=config,
            budget=config.budget(decoder.hidden_size),
            thresholds=thresholds,
            norm_name=_name(block.layer, block.attention_norm),
            device=_device(block.layer),
        )
        handle._patch(block, softening)
        handle.layers.append(index)


def _check_dims(
    dims: Mapping[int, Sequence[int]] | None, decoder: Decoder, layers: tuple[int, ...]
) -> None:
    """Raise PatchError where given dims miss a softened layer or do not exist."""
    if dims is None:
        return
    for index in layers:
        given = dims.get(index)
        if given is None or not all(0 <= d < decoder.hidden_size for d in given):
            raise PatchError(
                f"dims must give dims from 0 to {decoder.hidden_size - 1} for each of the layers "
                f"{list(layers)}; for layer {index} it gives {given}."
            )


def _name(layer: nn.Module, part: nn.Module | None) -> str | None:
    return next((name for name, child in layer.named_children() if child is part), None)


def _device(layer: nn.Module) -> torch.device:
    devices = {p.device for p in layer.parameters() if not p.is_meta}
    return next(iter(devices), torch.device("cpu"))


def _set_dims(handle: SoftenHandle, dims: Mapping[int, Sequence[int] | None]) -> None:
    for softening in handle.softenings():
        chosen = dims[softening.index]
        if chosen is not None:
            device = softening.massive_dims.device
            softening.dims = torch.tensor(chosen, dtype=torch.int64, device=device)
        handle.dims[softening.index] = None if chosen is None else list(chosen)


def _probe(handle: SoftenHandle, model: nn.Module) -> dict[int, int]:
    return {index: o.tokens for index, o in observe(handle, model).items()}


def _check_fires(handle: SoftenHandle) -> None:
    if sum(handle.tokens_touched.values()) == 0:
        raise PatchError(
            f"The softening touches nothing: none of the layers {handle.layers} saw a token of "
            f"tokens={handle.config.tokens} on the probe prompt. Massive tokens exist only after "
            "the ME Layer and before they are erased; run `wemask detect` to see where."
        )
