"""What flows through a decoder layer: hooks that hand over its parts as soon as it has run.

B batch, T tokens, D hidden size. Nothing is kept from one layer to the next.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block, Decoder


@dataclass(kw_only=True)
class Passage:
    """What one decoder layer read and wrote in one forward, [B, T, D] each; h[l-1] -> h[l]."""

    block: Block
    entered: Tensor
    """h[l-1], the residual stream that entered the layer."""
    attention_input: Tensor | None = None
    """x[l], what attention read, softened where the layer is; None unless it was asked for."""
    attended: Tensor | None = None
    """What the attention module returned."""
    middle: Tensor | None = None
    """The residual stream that the FFN half of the layer read."""
    left: Tensor
    """h[l], the residual stream at the layer's output."""

    def writes(self, places: Tensor) -> tuple[Tensor, Tensor] | None:
        """What attention and FFN added to some tokens, float32 [n, D] each, on the CPU.

        Args:
            places: int64 [n], where in B * T the tokens are.

        Returns:
            None where the FFN half read nothing that we know.
        """
        if self.middle is None:
            return None
        entered, middle, left = (
            rows_of(tensor, places) for tensor in (self.entered, self.middle, self.left)
        )
        if torch.equal(middle, entered) and self.attended is not None:  # parallel block
            middle = entered + rows_of(self.attended, places)
        return middle - entered, left - middle


def rows_of(tensor: Tensor, places: Tensor) -> Tensor:
    """Tokens of [B, T, D] by their places in B * T: float32 [n, D] on the CPU."""
    return tensor.reshape(-1, tensor.shape[-1])[places.to(tensor.device)].float().cpu()


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a module was called with first, by place or by name."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def first_output(output: Any) -> Any:
    """The tensor that a module returns, alone or before others."""
    return output[0] if isinstance(output, (tuple, list)) else output


@contextmanager
def watching(
    decoder: Decoder,
    started: Callable[[Tensor], None],
    passed: Callable[[Passage], None],
    *,
    inputs: bool = False,
) -> Iterator[None]:
    """Within it, each forward calls `started` with h[-1], then `passed` after every layer.

    Args:
        decoder: whose layers.
        started: gets the embedding output [B, T, D].
        passed: gets what went through a layer.
        inputs: also hand over what attention read.
    """
    watch = _Watch(started, passed)
    hooks: list[Any] = []
    for block in decoder.blocks:
        hooks += watch.hooks(block, inputs)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    def __init__(
        self, started: Callable[[Tensor], None], passed: Callable[[Passage], None]
    ) -> None:
        self.started, self.passed = started, passed
        self.entered: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        self.entered = self.attention_input = self.attended = self.middle = None

    def hooks(self, block: Block, inputs: bool) -> list[Any]:
        reads = block.ffn_norm if block.ffn_norm is not None else block.ffn
        hooks = [
            block.layer.register_forward_pre_hook(self._enter(block), with_kwargs=True),
            block.attention.register_forward_hook(self._attend),
            reads.register_forward_pre_hook(self._read, with_kwargs=True),
            block.layer.register_forward_hook(self._leave(block)),
        ]
        if not inputs:
            return hooks
        hooks.append(block.attention.register_forward_pre_hook(self._take_in, with_kwargs=True))
        # A softened attention changes its input after that hook has seen it.
        softening = getattr(block.attention, "softening", None)
        if softening is not None and not softening.stream:
            hooks.append(softening.register_forward_hook(self._soften))
        return hooks

    def _enter(self, block: Block):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._forget()
            self.entered = first_argument(args, kwargs)
            if block.index == 0 and self.entered is not None:
                self.started(self.entered)

        return hook

    def _take_in(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.attention_input = first_argument(args, kwargs)

    def _soften(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.attention_input = output

    def _attend(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.attended = first_output(output)

    def _read(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.middle = first_argument(args, kwargs)

    def _leave(self, block: Block):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            assert self.entered is not None
            passage = Passage(
                block=block,
                entered=self.entered,
                attention_input=self.attention_input,
                attended=self.attended,
                middle=self.middle,
                left=first_output(output),
            )
            self._forget()
            self.passed(passage)

        return hook


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode; every module gets back its own mode, as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def without_logits(model: nn.Module) -> dict[str, Any]:
    """Arguments of a forward whose logits nobody reads: a vocabulary is wide."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known else {}
