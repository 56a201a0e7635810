"""What a Dockerfile would do, without Docker: its steps, its build context, its layers' keys.

Only the part of the language that `docker/Dockerfile` uses; anything else raises. The context is
made as Docker makes it, from the rules of the .dockerignore alone. A layer's key is a hash of
everything its content is made from, so an equal key is a layer that Docker takes from its cache.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = frozenset("COPY RUN ENV WORKDIR VOLUME USER HEALTHCHECK ENTRYPOINT".split())


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN --mount=... pip install` has op RUN, one flag, and the rest as text."""

    op: str
    flags: tuple[tuple[str, str], ...]
    text: str

    def flag(self, name: str) -> str | None:
        return dict(self.flags).get(name)

    @property
    def mounts(self) -> list[dict[str, str]]:
        """The fields of each `--mount`."""
        values = [value for name, value in self.flags if name == "mount"]
        return [dict(part.split("=", 1) for part in value.split(",")) for value in values]

    @property
    def sources(self) -> list[str]:
        return [word.rstrip("/") for word in self.text.split()[:-1]]

    @property
    def target(self) -> str:
        return self.text.split()[-1]

    @property
    def stages(self) -> list[str]:
        """The other stages it reads from."""
        named = [self.flag("from"), *(mount.get("from") for mount in self.mounts)]
        return [name for name in named if name]

    def __str__(self) -> str:
        return f"{self.op} {self.text}"


@dataclass
class Stage:
    """One FROM and what follows. `base` is the name of an earlier stage, or of an image."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (`RUN`, the rest), with comments left out and continued lines joined as Docker does."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    for line in joined.splitlines():
        op, _, rest = line.partition(" ")
        yield op.upper(), rest.strip()


def read(text: str) -> list[Stage]:
    """The stages of a Dockerfile, in order."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for op, rest in instructions(text):
        if op == "ARG" and not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif op == "FROM":
            base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", rest, re.I).groups()  # type: ignore[union-attr]
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
            stages.append(Stage(name or str(len(stages)), base))
        elif op in KNOWN:
            stages[-1].steps.append(_step(op, rest))
        else:
            raise ValueError(f"tests/support/dockerfile.py does not know the instruction {op}")
    return stages


def _step(op: str, rest: str) -> Step:
    flags = []
    while found := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", rest):
        flags.append((found[1], found[2] or ""))
        rest = rest[found.end() :]
    return Step(op, tuple(flags), rest)


def settings(step: Step) -> dict[str, str]:
    """What an ENV step sets; `$PATH` is not expanded."""
    return dict(word.split("=", 1) for word in shlex.split(step.text))


# ---- the build context ----


def _pattern(text: str) -> re.Pattern[str]:
    """A line of a .dockerignore as a regular expression over paths (as Go's, with `**`)."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", text)
    return re.compile(
        "".join(
            translated.get(p, p if p.startswith("[") and p.endswith("]") else re.escape(p))
            for p in parts
        )
    )


def rules(text: str) -> list[tuple[bool, re.Pattern[str]]]:
    """(is it let in again, pattern) of each line."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        (line.startswith("!"), _pattern(line.lstrip("!").strip("/")))
        for line in lines
        if line and not line.startswith("#")
    ]


def is_ignored(path: str, ignore: list[tuple[bool, re.Pattern[str]]]) -> bool:
    """Whether a file stays out: the last rule that matches it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    ignored = False
    for lets_in, pattern in ignore:
        if any(pattern.fullmatch(prefix) for prefix in above):
            ignored = not lets_in
    return ignored


def context(root: Path, ignore_text: str) -> dict[str, Path]:
    """The files that Docker would send, by their path in the context; git plays no part in it."""
    ignore = rules(ignore_text)
    # So that a folder ignored at the top (.venv, outputs) need not be walked.
    if any(lets_in and "/" in pattern.pattern for lets_in, pattern in ignore):
        raise ValueError(
            "tests/support/dockerfile.py: a ! rule below a folder of the top is not supported"
        )
    files = {}
    for top in sorted(root.iterdir()):
        if top.is_symlink() or is_ignored(top.name, ignore):
            continue
        for path in [top] if top.is_file() else _files_below(top):
            name = path.relative_to(root).as_posix()
            if not is_ignored(name, ignore):
                files[name] = path
    return files


def _files_below(folder: Path) -> list[Path]:
    return sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names)


# ---- layers ----


def copied(step: Step, files: dict[str, Path]) -> dict[str, Path]:
    """The files of the context that a COPY takes, by their path in the context."""
    found = {}
    for source in step.sources:
        taken = {n: p for n, p in files.items() if n == source or n.startswith(f"{source}/")}
        if not taken:
            raise FileNotFoundError(f"COPY {source}: not in the build context")
        found |= taken
    return found


def digest(files: dict[str, Path]) -> str:
    """Names, bits for execution and contents. Not times: Docker leaves them out, too."""
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        runs = bool(path.stat().st_mode & 0o111)
        whole.update(f"{name}\0{runs}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def layer_keys(
    stages: list[Stage], files: dict[str, Path], outputs: dict[str, str] | None = None
) -> dict[tuple[str, str], str]:
    """(stage, step) -> a hash of the step, of its inputs, and of all steps before it.

    Args:
        stages: from `read`.
        files: from `context`.
        outputs: stage -> a hash of what others copy from it. BuildKit compares the content of what
            is copied; without an entry here, a stage counts as changed when any step of it is.
    """
    keys: dict[tuple[str, str], str] = {}
    last: dict[str, str] = {}
    for stage in stages:
        key = last.get(stage.base, stage.base)
        for step in stage.steps:
            taken = copied(step, files) if step.op == "COPY" and not step.flag("from") else {}
            read_from = [(outputs or {}).get(name, last[name]) for name in step.stages]
            # A linked layer is laid over whatever is below: it depends on its content alone.
            below = [] if step.flag("link") is not None else [key]
            made_of = [*below, repr(step), digest(taken), *read_from]
            own = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
            keys[stage.name, str(step)] = own
            key = hashlib.sha256(f"{key}\0{own}".encode()).hexdigest()
        last[stage.name] = key
    return keys


def changed(
    stages: list[Stage],
    before: dict[str, Path],
    after: dict[str, Path],
    outputs: dict[str, str] | None = None,
) -> list[tuple[str, str]]:
    """The (stage, step) pairs that Docker would do again when the context becomes `after`."""
    old, new = (layer_keys(stages, files, outputs) for files in (before, after))
    return [name for name, key in new.items() if old[name] != key]
