"""What an experiment does to a model while a batch runs: chosen tokens changed at one place.

    with scale_ffn(decoder, layer=6, factor=0.0, site="output")(batch):
        model(...)       # the FFN of layer 6 writes nothing into the massive tokens of the batch

Each function returns a context for `measurement.measure(..., around=...)`. Hooks change a copy of
what flows by; weights, and tensors that others hold, stay as they are. Tokens are given by a mask
that was found in the intact model, since the point is to change what makes them massive.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block, Decoder, ffn_writer, layer_index_error
from wemask.decoder.passage import first_argument, first_output
from wemask.errors import ConfigError, nearest
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import Around, Where
from wemask.operator.equation import soften_dims

FFN_SITES = ("input", "output")


def massive(batch: Batch) -> Tensor:
    """The massive tokens."""
    return batch.massive


def ordinary(batch: Batch) -> Tensor:
    """One ordinary token of each text: the first that is neither massive nor the text's first."""
    free = batch.attention_mask.bool() & ~batch.massive & ~batch.first
    return free & (free.long().cumsum(-1) == 1)


def together(*arounds: Around) -> Around:
    """Several interventions at once, the first outermost."""

    @contextmanager
    def context(batch: Batch) -> Iterator[None]:
        with ExitStack() as stack:
            for around in arounds:
                stack.enter_context(around(batch))
            yield

    return context


def scale_ffn(decoder: Decoder, layer: int, factor: float, site: str) -> Around:
    """Multiply what the FFN of a layer reads or writes by `factor`, for massive tokens only.

    `input` is the output of the norm before the FFN; in a parallel block, where that norm feeds
    attention as well, what the FFN alone is given. `output` is what is added to the residual, after
    a post-norm where there is one (which would undo a factor before it).

    Raises:
        ConfigError: an unknown site.
        ModelError: no such layer.
    """
    if site not in FFN_SITES:
        raise ConfigError(
            f"site is one of {', '.join(FFN_SITES)}; got {site!r}." + nearest(site, FFN_SITES)
        )
    block = _block(decoder, layer)

    def change(x: Tensor, tokens: Tensor) -> Tensor:
        return torch.where(tokens.unsqueeze(-1), x * factor, x)

    if site == "output":
        return _changing([(ffn_writer(block), "output")], change)
    dedicated = block.ffn_norm is not None and block.ffn_norm is not block.attention_norm
    place = (block.ffn_norm, "output") if dedicated else (block.ffn, "input")
    return _changing([place], change)


def write_state(
    decoder: Decoder, layer: int, dims: Sequence[int], values: Tensor, where: Where = massive
) -> Around:
    """Set dims of the residual stream h[layer] of the chosen tokens to `values`, float32 [dims]."""
    block = _block(decoder, layer)

    def change(h: Tensor, tokens: Tensor) -> Tensor:
        index = torch.tensor(list(dims), device=h.device)
        column = values.to(h.device, h.dtype).expand(*h.shape[:-1], len(dims))
        old = h.index_select(-1, index)
        return h.index_copy(-1, index, torch.where(tokens.unsqueeze(-1), column, old))

    return _changing([(block.layer, "output")], change, where)


def soften_input(
    decoder: Decoder, layers: Iterable[int], dims: Sequence[int], strength: float
) -> Around:
    """The operator's equation on the massive tokens' attention input, in any layers.

    What `wemask.soften` does where tokens are massive already; here also at and before the ME
    Layer, where they are not yet, which makes the same change in other places a control.
    """
    places = [(_block(decoder, layer).attention, "input") for layer in layers]

    def change(x: Tensor, tokens: Tensor) -> Tensor:
        return soften_dims(x, tokens, torch.tensor(list(dims), device=x.device), strength)

    return _changing(places, change)


def _block(decoder: Decoder, layer: int) -> Block:
    if not 0 <= layer < len(decoder.blocks):
        raise layer_index_error(layer, len(decoder.blocks))
    return decoder.blocks[layer]


def _changing(
    places: Sequence[tuple[Any, str]],
    change: Callable[[Tensor, Tensor], Tensor],
    where: Where = massive,
) -> Around:
    """Change what modules read (`input`) or return (`output`), for the chosen tokens of a batch."""

    @contextmanager
    def context(batch: Batch) -> Iterator[None]:
        tokens = where(batch) & batch.attention_mask.bool()

        def changed(x: Tensor) -> Tensor:
            # OPT's FFN sees [B * T, D]
            return change(x, tokens.to(x.device).reshape(x.shape[:-1]))

        with ExitStack() as hooks:
            for module, site in places:
                hooks.enter_context(_hook(module, site, changed))
            yield

    return context


def _hook(module: nn.Module, site: str, changed: Callable[[Tensor], Tensor]) -> Any:
    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        value = first_argument(args, kwargs)
        if args:
            return (changed(value), *args[1:]), kwargs
        name = next(key for key, given in kwargs.items() if given is value)
        return args, {**kwargs, name: changed(value)}

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        value = changed(first_output(output))
        return (value, *output[1:]) if isinstance(output, tuple) else value

    if site == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
