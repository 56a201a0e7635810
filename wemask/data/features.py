"""The columns of the examples: pairs, conversations or plain text, as TRL knows them."""

import datasets

from wemask.errors import DataError

# As JSON, for a key that only some messages have is null in the others of an Arrow struct, and a
# template that asks whether there is one would say yes.
MESSAGES = datasets.List(datasets.Json())
STRING = datasets.Value("string")
PAIR_FEATURES = datasets.Features({"prompt": MESSAGES, "completion": MESSAGES, "source": STRING})
CHAT_FEATURES = datasets.Features({"messages": MESSAGES, "source": STRING})
TEXT_FEATURES = datasets.Features({"text": STRING, "source": STRING})


def features_of(*, text: bool, several: bool, tools: bool) -> datasets.Features:
    """The columns of a dataset.

    Args:
        text: its records are plain text.
        several: some of its conversations train several turns.
        tools: some of its records have tools.
    """
    if text:
        return TEXT_FEATURES
    features = CHAT_FEATURES if several else PAIR_FEATURES
    return datasets.Features({"tools": STRING, **features}) if tools else features


def fitting(features: datasets.Features, like: datasets.Features, label: str) -> datasets.Features:
    """The columns of examples that are to be had beside others: pairs can be put as messages.

    Raises:
        DataError: the two are not of one kind; `label` says whose these are.
    """
    if "messages" in like and "prompt" in features:
        return features_of(text=False, several=True, tools="tools" in features)
    for kind in ("text", "messages", "prompt"):
        if (kind in features) != (kind in like):
            hint = " Type data.turns=last." if "messages" in features else ""
            raise DataError(
                f"{label} (data.validation) makes {', '.join(features)}; the training data make "
                f"{', '.join(like)}.{hint}"
            )
    return features
