"""Run the steps of docker/Dockerfile without Docker, in a Debian root made by debootstrap.

    python tests/support/image_root.py [--base FOLDER]

Needs root, debootstrap, overlayfs, a Debian mirror, an index and about 10 GB in the temporary
folder. Each stage is an overlay over the one it starts from, each RUN a chroot, each COPY from the
build context alone. Only the distribution differs: `dnf` steps are left out, the packages they
name come from Debian. Then what the image is for is run in it, by its user and by a foreign one.

All mounts are made in a mount namespace of our own: they are gone when it ends, even when killed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dockerfile
from dockerfile import Stage, Step

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
MIRROR = "http://deb.debian.org/debian"
# Debian 12, because its Python is 3.11, as the image's.
SUITE = "bookworm"
DEBIAN = {
    "gcc": ["gcc", "libc6-dev"],
    "gcc-c++": ["g++"],
    "python3.11": ["python3", "python3-venv", "python3-distutils"],
    "python3.11-devel": ["python3-dev"],
    "shadow-utils": ["passwd"],
}
INSIDE = "WEMASK_IMAGE_ROOT"  # set in the namespace
FOREIGN = "4242:4242"  # a user that the image does not know


def packages(stages: list[Stage]) -> list[str]:
    """Debian's names of what the `dnf install` steps name; an unknown one is a KeyError."""
    names = []
    for step in (step for stage in stages for step in stage.steps if step.op == "RUN"):
        for found in re.findall(r"dnf install ([^&]*)", step.text):
            words = [word for word in found.split() if not word.startswith("-")]
            names += [debian for word in words for debian in DEBIAN[word]]
    return list(dict.fromkeys(names))


def without_dnf(command: str) -> str:
    """The command less its `dnf` parts; empty when nothing else is in it."""
    parts = [part.strip() for part in command.split("&&")]
    return " && ".join(part for part in parts if not part.startswith("dnf "))


def sh(*words: object, **options: object) -> None:
    subprocess.run([str(word) for word in words], check=True, **options)  # type: ignore[call-overload]


def pip_settings() -> tuple[dict[str, str], list[Path]]:
    """This machine's pip settings as environment, and the files and folders that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    variables, paths = {}, []
    for name, value in re.findall(r"^[\w:.]*\.([\w-]+)='(.*)'$", listed.stdout, re.M):
        variables["PIP_" + name.upper().replace("-", "_")] = value
        # The pages of an index on disk point to files beside it.
        named = [
            Path(w.removeprefix("file://")).parent if w.startswith("file://") else Path(w)
            for w in value.split()
        ]
        paths += [path for path in named if path.is_absolute() and path.exists()]
    return variables, paths


class Build:
    """The stages of a Dockerfile as overlays under `folder`."""

    def __init__(self, folder: Path, stages: list[Stage], files: dict[str, Path]):
        self.folder, self.stages, self.files = folder, stages, files
        self.layers: dict[str, list[Path]] = {}  # stage -> its upper folders, the topmost first
        self.roots: dict[str, Path] = {}
        self.environment: dict[str, dict[str, str]] = {}
        self.workdir: dict[str, str] = {}
        self.user: dict[str, str] = {}
        self.seconds: list[tuple[str, Step, float]] = []
        self.pip, self.pip_paths = pip_settings()

    def bootstrap(self, image: str, base: Path | None) -> None:
        """What stands for the image that the first stage is FROM; a finished one is used again."""
        base = base or self.folder / "base"
        began = time.monotonic()
        if not (base / "debootstrap-done").exists():
            include = f"--include={','.join(packages(self.stages))}"
            quiet = {"stdout": subprocess.DEVNULL}
            sh("debootstrap", "--variant=minbase", include, SUITE, base, MIRROR, **quiet)
            (base / "debootstrap-done").touch()
        print(f"{time.monotonic() - began:7.1f} s  debootstrap", flush=True)
        for path in (Path("/etc/resolv.conf"), *(p for p in self.pip_paths if p.is_file())):
            (base / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, base / path.relative_to("/"))
        self.layers[image] = [base]
        self.environment[image] = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}

    def start(self, stage: Stage) -> None:
        """Mount a stage over its base, with what a container has: /proc, /dev, /tmp."""
        upper, work, root = (self.folder / part / stage.name for part in ("upper", "work", "root"))
        for path in (upper, work, root):
            path.mkdir(parents=True)
        lower = ":".join(str(path) for path in self.layers[stage.base])
        sh("mount", "-t", "overlay", "overlay", root,
           "-o", f"lowerdir={lower},upperdir={upper},workdir={work}")  # fmt: skip
        sh("mount", "-t", "proc", "proc", root / "proc")
        sh("mount", "--rbind", "/dev", root / "dev")
        for path in (path for path in self.pip_paths if path.is_dir()):
            self.bind(path, root / path.relative_to("/"))
        self.layers[stage.name] = [upper, *self.layers[stage.base]]
        self.roots[stage.name] = root
        self.environment[stage.name] = dict(self.environment[stage.base])
        self.workdir[stage.name] = self.workdir.get(stage.base, "/")
        self.user[stage.name] = self.user.get(stage.base, "0:0")

    def bind(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        sh("mount", "--bind", source, target)

    def run(self, stage: str, words: list[str], user: str = "0:0", **more: str) -> str:
        """Run a command in a stage's root; return what it printed, on both streams."""
        variables = {**self.environment[stage], **more}
        command = ["chroot", f"--userspec={user}", "--groups=", str(self.roots[stage])]
        command += ["env", "-i", "-C", self.workdir[stage]]
        command += [f"{name}={value}" for name, value in variables.items()]
        done = subprocess.run(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}\nexit {done.returncode}: {shlex.join(words)}")
        return done.stdout

    def apply(self, stage: Stage, step: Step) -> None:
        """Do what one instruction says."""
        if step.op == "COPY":
            self.copy(stage, step)
        elif step.op == "RUN":
            self.shell(stage, step)
        elif step.op == "ENV":
            known = self.environment[stage.name]
            known |= {
                n: v.replace("$PATH", known["PATH"]) for n, v in dockerfile.settings(step).items()
            }
        elif step.op == "WORKDIR":
            self.workdir[stage.name] = step.text
            (self.roots[stage.name] / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.op == "USER":
            self.user[stage.name] = step.text

    def copy(self, stage: Stage, step: Step) -> None:
        """COPY, from another stage or from the context."""
        inside = Path(self.workdir[stage.name], step.target)
        target = self.roots[stage.name] / inside.relative_to("/")
        if other := step.flag("from"):
            for source in step.sources:
                path = self.roots[other] / source.lstrip("/")
                target.mkdir(parents=True, exist_ok=True)
                sh("cp", "-a", f"{path}/." if path.is_dir() else path, target)
            return
        for name, path in dockerfile.copied(step, self.files).items():
            above = next(s for s in step.sources if name == s or name.startswith(f"{s}/"))
            relative = name.removeprefix(above).lstrip("/") or Path(name).name
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / relative)

    def shell(self, stage: Stage, step: Step) -> None:
        """RUN, less what the Debian packages already are."""
        command = without_dnf(step.text)
        if not command:
            return
        cache = Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache" / "pip")
        cache.mkdir(parents=True, exist_ok=True)
        targets = []
        for mount in step.mounts:
            target = self.roots[stage.name] / mount["target"].lstrip("/")
            cached = mount["type"] == "cache"
            source = cache if cached else self.roots[mount["from"]] / mount["source"].lstrip("/")
            self.bind(source, target)
            targets.append(target)
        passed = {n: v for n, v in os.environ.items() if n.lower().endswith("_proxy")}
        # Root's home, as in the image: there the cache is mounted.
        self.run(stage.name, ["sh", "-c", command], HOME="/root", **self.pip, **passed)
        for target in targets:
            sh("umount", target)

    def all(self, base: Path | None) -> None:
        """Every step of every stage, timed."""
        self.bootstrap(self.stages[0].base, base)
        for stage in self.stages:
            self.start(stage)
            for step in stage.steps:
                began = time.monotonic()
                self.apply(stage, step)
                self.seconds.append((stage.name, step, time.monotonic() - began))
                print(f"{self.seconds[-1][2]:7.1f} s  {stage.name}: {str(step)[:80]}", flush=True)


def last(stages: list[Stage], op: str) -> Step:
    """The instruction of this kind that holds for the image."""
    return [step for step in stages[-1].steps if step.op == op][-1]


# Every installed distribution is the pinned one. pip is the distribution's; our package has no pin.
PINNED = """
import importlib.metadata as m, re, sys
name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
pins = dict(line.strip().split("==") for line in sys.stdin if line[0] not in "#\\n")
pins = {name(key): version for key, version in pins.items()}
found = {name(d.metadata["Name"]): d.version.partition("+")[0] for d in m.distributions()}
others = {n: v for n, v in found.items() if n not in ("pip", "wemask") and pins.get(n) != v}
print(len(found), "distributions; not as pinned:", others)
sys.exit(bool(others))
"""


def check(build: Build) -> None:
    """Run in the image what it is for, as its user and as one it does not know."""
    stages, stage = build.stages, build.stages[-1].name
    health = json.loads(last(stages, "HEALTHCHECK").text.removeprefix("CMD "))
    train = [*json.loads(last(stages, "ENTRYPOINT").text), "debug=fast"]
    detect = ["wemask", "detect", "--model", "tiny"]
    user = last(stages, "USER").text
    where = ["python", "-c", "import os, wemask; print('uid', os.getuid(), wemask.__file__)"]
    pins = ["sh", "-c", f"python -c {shlex.quote(PINNED)} < /tmp/constraints.txt"]
    shutil.copy(REPOSITORY / "constraints.txt", build.roots[stage] / "tmp")
    for words in (health, where, ["pip", "check"], pins, ["wemask", "--help"], detect, train):
        try_out(build, words, user, "/home/wemask")
    elsewhere = ["--out", "outputs/foreign"], ["experiment_name=foreign"]
    for words in (health, [*detect, *elsewhere[0]], [*train, *elsewhere[1]]):
        try_out(build, words, FOREIGN, "/")
    runs = sorted(build.roots[stage].glob("app/outputs/*/tiny__*/"))
    for run in runs:
        print(f"{run.name}: {sorted(path.name for path in run.iterdir())}")
    if len(runs) != 2:
        raise SystemExit(f"two trainings left {len(runs)} run folders")


def try_out(build: Build, words: list[str], user: str, home: str) -> None:
    began = time.monotonic()
    printed = build.run(build.stages[-1].name, words, user, HOME=home)
    took = time.monotonic() - began
    print(f"{took:7.1f} s  as {user}: {shlex.join(words)[:80]}\n{printed[-600:]}", flush=True)


def report_code_change(build: Build) -> None:
    """How long the steps took that a change in the code makes Docker do again."""
    after = build.files | {"wemask/cli.py": build.files["wemask/__init__.py"]}
    again = dockerfile.changed(build.stages, build.files, after)
    took = [seconds for stage, step, seconds in build.seconds if (stage, str(step)) in again]
    whole = sum(seconds for *_, seconds in build.seconds)
    print(f"all steps {whole:.1f} s; those that a change in wemask/ repeats {sum(took):.1f} s")


def inside(folder: Path, base: Path | None) -> None:
    """Build and check; called in our own mount namespace."""
    stages = dockerfile.read((DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    build = Build(folder, stages, dockerfile.context(REPOSITORY, ignore))
    began = time.monotonic()
    build.all(base)
    print(f"{time.monotonic() - began:7.1f} s  built, debootstrap included", flush=True)
    check(build)
    report_code_change(build)


def main() -> int:
    """Start this script again in namespaces of its own, and remove what it leaves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--base", type=Path, help="a debootstrap root to use; made if missing, kept"
    )
    base = parser.parse_args().base
    if folder := os.environ.get(INSIDE):
        inside(Path(folder), base and base.resolve())
        return 0
    for program in ("debootstrap", "unshare"):
        if shutil.which(program) is None:
            raise SystemExit(f"needs {program}: apt-get install debootstrap util-linux")
    if os.geteuid() != 0:
        raise SystemExit("image_root.py needs root: it mounts, and calls chroot")
    # Ended by TERM, too, the folder is removed; --kill-child ends what runs in the namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="wemask-image-") as made:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, INSIDE: made}).returncode


if __name__ == "__main__":
    sys.exit(main())
