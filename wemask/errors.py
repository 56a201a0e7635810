"""Errors a user can act on: what was sought, what was found, what to type next.

Every one of them ends a command with exit code 2 and one message, never with a traceback.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class WemaskError(Exception):
    """Base of all errors that are the input's fault, not ours."""

    exit_code = 2
    of_main = False
    """True on ranks above 0 for an error of rank 0, which says it."""


class ConfigError(WemaskError, ValueError):
    """A setting that does not exist or has a value that makes no sense."""


class DataError(WemaskError, ValueError):
    """A dataset that is missing, empty or malformed."""


class ModelError(WemaskError, ValueError):
    """A model that cannot be loaded, or in which a needed part was not found."""


class DetectionError(WemaskError, ValueError):
    """Detection could not be run, or its result does not allow what was asked."""


class PatchError(WemaskError, RuntimeError):
    """A softening that cannot be applied, or that would touch nothing."""


class RunFolderError(WemaskError, RuntimeError):
    """A run folder that is locked, unwritable, or belongs to another configuration."""


@contextmanager
def judged_by(
    library: str, kind: type[WemaskError] = ConfigError, what: str = "these settings"
) -> Iterator[None]:
    """Turn whatever a library raises while it is being set up into one error of ours.

    Only around calls whose input is the user's: a fault of our own would be told as theirs.

    Args:
        library: who refuses: `TRL`, `PEFT`, `wandb`.
        kind: what is raised.
        what: what is refused, with what to type next where that is known.
    """
    try:
        yield
    except WemaskError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{library} refuses {what}: {said[:600]}") from error


def nearest(name: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the option closest to `name`, or "" when none is close."""
    match = difflib.get_close_matches(str(name), [str(o) for o in options], n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
