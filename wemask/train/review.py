"""What is said about the data before a training, and what is left of them for it."""

from functools import partial
from typing import Any

from rich.console import Console

from wemask import distributed
from wemask.data import chat
from wemask.data.audit import Audit, audit, named
from wemask.decoder.parts import positions
from wemask.errors import DataError
from wemask.files import say
from wemask.settings.config import RunConfig
from wemask.train.prepare import Prepared
from wemask.train.summary import show_summary

Data = tuple[Any, Any]  # what is trained, and what is kept apart from it or None


def review(
    config: RunConfig, prepared: Prepared, data: Data, console: Console
) -> tuple[chat.LossChoice, Data]:
    """Show the summary and a sample, and count what is cut or not shown; -> loss and data.

    Raises:
        DataError: nothing to train is left, or a turn would be trained as an empty one.
    """
    examples, validation = data
    loss = chat.choose_loss(
        examples[0],
        prepared.tokenizer,
        completion_only=config.trainer.get("completion_only_loss"),
        assistant_only=config.trainer.get("assistant_only_loss"),
    )
    show_summary(console, config, prepared, example=examples[0], loss=loss)
    examples = _reviewed(config, prepared, examples, loss, console)
    if validation is not None:
        say(console, "For validation, not trained:")
        validation = _reviewed(config, prepared, validation, loss, console)
    return loss, (examples, validation)


def _reviewed(
    config: RunConfig, prepared: Prepared, examples: Any, loss: chat.LossChoice, console: Console
) -> Any:
    limit = config.trainer_value("max_length")
    found = audit(examples, prepared.tokenizer, loss, max_length=limit)
    style = "yellow" if found.truncated or found.untrained else ""
    console.print(str(found), style=style, soft_wrap=True, markup=False, highlight=False)
    for line in found.warnings():
        say(console, line)
    if found.untrained and len(found.untrained) >= (found.looked or found.n):
        raise DataError(_nothing_left(found, limit))
    shown, most = min(found.longest, limit or found.longest), positions(prepared.model)
    if shown > most:
        raise DataError(
            f"The longest example has {shown} tokens, and the model was made for {most}. Type "
            f"trainer.max_length={most}; what is longer is cut."
        )
    if found.silent:
        examples = _without_silent(config, examples, found, console)
    if not found.masked:
        return examples
    return distributed.main_first(partial(chat.labelled, examples, prepared.tokenizer, loss))


def _nothing_left(found: Audit, limit: int | None) -> str:
    if limit is not None and found.truncated:
        return (
            f"trainer.max_length={limit} leaves nothing to train in any example: the answers begin "
            f"later. The longest example has {found.longest} tokens."
        )
    return f"The chat template shows nothing of the answers of {named(found.untrained)}."


def _without_silent(config: RunConfig, examples: Any, found: Audit, console: Console) -> Any:
    """Leave out, where that is asked for, what the chat template shows as an empty answer."""
    what = (
        f"{len(found.silent)} examples have answers of which the chat template shows nothing, "
        f"tool calls or reasoning alone: {named([*found.silent.values()])}."
    )
    if config.data.invalid == "error" or len(found.silent) == found.n:
        raise DataError(
            f"{what} Take a model whose template shows them, type data.invalid=drop to leave them "
            "out, or, for ShareGPT's calls, data.roles={function_call: assistant} to train their "
            "text."
        )
    say(console, f"{what} Left out (data.invalid=drop).")
    return examples.select([i for i in range(found.n) if i not in found.silent])
