"""Every token that the tokenizer can emit has a row in the model's embedding, or is given one.

A pad token or a chat template's words, added to a tokenizer alone, would else end in an IndexError
in the middle of a run.
"""

import re
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from wemask.decoder.parts import rows, unwrap
from wemask.errors import ModelError

MOST_ADDED = 65_536  # rows, beside as many again as there are
# No text becomes one of these, unless somebody writes it there: what stands for an image and the
# like (the tokenizer of Gemma 3 has one behind the embedding of its text models), and what
# transformers adds to the vocabulary of a GGUF file that has none.
IDLE = re.compile(r"image|video|audio|vision|^<\|endoftext\|>$", re.IGNORECASE)


def fit_vocabulary(model: nn.Module, tokenizer: Any, name: str, *, resize: bool = False) -> None:
    """Hold the ids of a tokenizer against the model's embedding.

    Args:
        model: unsoftened or softened.
        tokenizer: its own; its ids start at 0.
        name: what the user called it, for the message.
        resize: give the model rows for what it lacks, see `widen`.

    Raises:
        ModelError: there are tokens without a row, and `resize` is false.
    """
    size = rows(model)
    used = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    beyond = [
        (token, number)
        for token, number in sorted(tokenizer.get_vocab().items(), key=itemgetter(1))
        if number >= size and (resize or token in used or not IDLE.search(token))
    ]
    if not beyond:
        return
    if resize:
        widen(model, beyond[-1][1] + 1)
        return
    shown = ", ".join(f"{token!r} ({number})" for token, number in beyond[:3])
    raise ModelError(
        f"The tokenizer of {name} has {len(beyond)} tokens without a row in the model's embedding "
        f"of {size:,}: {shown}. Type model.resize=true (for `wemask`: --resize, in Python "
        "wemask.load(..., resize=True)) to add rows, the mean of all others; or take the tokens "
        "out of the tokenizer."
    )


def widen(model: nn.Module, size: int) -> None:
    """Resize the embeddings as transformers does, the same way each time; nothing if they are.

    It draws new rows close to the mean of all. An adapter holds none of its base's rows, so the
    base gets them anew at each load.

    Raises:
        ModelError: transformers cannot resize this model, or far too many rows are asked for.
    """
    base: Any = unwrap(model)
    if (old := rows(base)) >= size:
        return
    if size > 2 * old + MOST_ADDED:
        raise ModelError(f"{size:,} tokens are no vocabulary of a model that has {old:,}.")
    device = next(base.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            base.resize_token_embeddings(size)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(f"The embeddings cannot be resized to {size:,} rows: {error}.") from error
