"""What a model thought before it spoke: `<think>...</think>` is not part of its answer."""

import re

_MARK = re.compile(
    r"<(/?)(?:seed:)?(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]|◁(/?)think▷", re.IGNORECASE
)


def spoken(text: str) -> str:
    """Return `text` without its thoughts; where it has only thoughts, and they end, those.

    A thought that never ends is nothing said. What stands before an end without a beginning is a
    thought, too: some templates write the beginning into the prompt.
    """
    said, at, thinking = "", 0, False
    for mark in _MARK.finditer(text):
        ends = "/" in mark.groups()
        if not thinking:
            said = "" if ends else said + text[at : mark.start()]
        thinking, at = not ends, mark.end()
    said = said if thinking else said + text[at:]
    return said if thinking or said.strip() else _MARK.sub(" ", text)
