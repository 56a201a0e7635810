"""A GGUF file as a model: checked before it is loaded, then dequantised by transformers.

The header is read here, and the file's length held against it: the reader of the package `gguf`
takes 2 to 10 s for a vocabulary, and of a truncated file it says that an array has another shape.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import Any

from wemask.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 counted in 32 bits; transformers reads these two
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # type of a value -> struct's
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    metadata: dict[str, Any]  # key -> number or text; of an array only its length
    tensors: list[tuple[str, int, int, int]]
    """Name, number of elements, ggml type, and offset from `start`."""
    start: int  # where the tensors begin, in bytes


def check(name: str, path: Path) -> None:
    """Refuse what could not be loaded, by the header and the length of `path`.

    Args:
        name: what the user called it, for messages.
        path: an existing file.

    Raises:
        ModelError: no GGUF file, truncated or damaged, one part of a split model, no whole model,
            of an architecture that transformers cannot read, or the package `gguf` is missing.
    """
    header = read_header(name, path)
    _check_readable(name, header.metadata)
    _check_whole(name, path, header)


def read_header(name: str, path: Path) -> Header:
    """Read the header alone; ModelError: no GGUF file, or it ends within its header."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(
                f"{name} is a file; a model is a folder, or a GGUF file, and this begins with no "
                f"{MAGIC.decode()}. Give {path.parent}, or a GGUF file."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header()
            except struct.error as error:
                raise ModelError(
                    f"{name} is truncated: it ends within its header, after {len(data)} bytes. "
                    "Download it again."
                ) from error
            except (ArithmeticError, KeyError, TypeError, ValueError) as error:
                raise ModelError(
                    f"{name} is a damaged GGUF file: {error!r}. Download it again."
                ) from error


class _Reader:
    """A place in the header that moves on with everything that is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = len(MAGIC)

    def header(self) -> Header:
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, known are {VERSIONS}")
        tensors, values = self.number("Q"), self.number("Q")
        metadata = {self.text(): self.value(self.number("I")) for _ in range(values)}
        table = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        return Header(metadata, table, -(-self.at // alignment) * alignment)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        return self.number(f"{min(length, len(self.data))}s").decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            self.at += count * struct.calcsize(f"<{NUMBERS[kind]}")
        else:
            for _ in range(count):
                self.value(kind)
        return count

    def tensor(self) -> tuple[str, int, int, int]:
        name, elements = self.text(), 1
        for _ in range(self.number("I")):
            elements *= self.number("Q")
        return name, elements, self.number("I"), self.number("Q")


def _check_readable(name: str, metadata: dict[str, Any]) -> None:
    """Refuse parts, adapters and unknown architectures."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise ModelError(
            f"{name} is one of {parts} parts of a split model, which transformers does not read. "
            "Join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{name} holds no model but {kind!r}. Give the GGUF file of the model.")
    architecture = str(metadata.get("general.architecture"))
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    plain = str.maketrans("", "", "_-")  # llama.cpp's `qwen2moe` and `gpt-oss` have _ there
    if architecture.translate(plain) not in {name.translate(plain) for name in known}:
        raise ModelError(
            f"{name} is of the architecture {architecture!r}, and this transformers reads GGUF "
            f"files of {', '.join(sorted(known))}. Give the model as a folder of safetensors."
        )


def _check_whole(name: str, path: Path, header: Header) -> None:
    """Hold the tensors' places against the file's length."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise ModelError(
            f"{name} is a GGUF file, which takes the package gguf to read. Type: "
            "pip install 'wemask[gguf]'"
        ) from error
    end = header.start
    for tensor, elements, kind, offset in header.tensors:
        if kind not in {known.value for known in GGMLQuantizationType}:
            raise ModelError(
                f"{name}: its tensor {tensor} is of type {kind}, unknown to the package gguf that "
                "is installed here. Type: pip install -U gguf"
            )
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        end = max(end, header.start + offset + elements // block * size)
    found = path.stat().st_size
    if end > found:
        raise ModelError(
            f"{name} is truncated: its tensors end at byte {end:,}, the file after {found:,}. "
            "Download it again."
        )
