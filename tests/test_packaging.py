"""What is installed and shipped: pins, the wheel, a light import, the README's commands."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import wemask

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["deepspeed"], *EXTRAS["dev"]]
]
# A CUDA build of torch pins these itself; a CPU build has none of them.
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton$)")


def read_pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (p.split("==") for p in pins)}


PINS = read_pins()


def test_constraints_are_exact_portable_and_sorted():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for pin in pins:
        # no local version (+cpu), no URL, no path, no -e
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin), pin
    names = [canonicalize_name(pin.split("==")[0]) for pin in pins]
    assert names == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_has_a_pin_within_its_bounds(requirement):
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def resolved(requirements: list[Requirement]) -> set[str]:
    """Names of all installed packages that `requirements` lead to, with their extras."""
    seen: set[tuple[str, str]] = set()
    todo = [(r.name, extra) for r in requirements for extra in ("", *r.extras)]
    while todo:
        name, extra = todo.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        for text in metadata.requires(name) or []:
            found = Requirement(text)
            if found.marker is None or found.marker.evaluate({"extra": extra}):
                todo += [(found.name, inner) for inner in ("", *found.extras)]
    return {name for name, _ in seen}


def test_the_whole_resolved_set_is_pinned_and_is_what_is_installed():
    names = {name for name in resolved(REQUIREMENTS) if not CUDA_ONLY.match(name)}
    assert names - PINS.keys() == set()
    installed = {name: Version(metadata.version(name)).public for name in names}
    assert installed == {name: PINS[name] for name in names}
    assert len(names) > 100  # the walk went through


def test_versions_agree():
    assert wemask.__version__ == PROJECT["version"]
    assert f"[{wemask.__version__}]" in changelog() or "[Unreleased]" in changelog()


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_where_the_entry_point_says():
    module, _, name = PROJECT["scripts"]["wemask"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


IMPORT = """
import json, os, sys, threading
before = dict(os.environ)
import wemask
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "environment": dict(os.environ) == before,
    "threads": threading.active_count(),
    "distributed": "torch.distributed" in sys.modules,
}))
"""


def test_import_is_light_and_has_no_side_effects():
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    found = json.loads(child.stdout)  # fails, too, if the import itself prints
    heavy = {"torch", "transformers", "trl", "peft", "deepspeed", "datasets", "lm_eval", "wandb"}
    assert heavy & set(found["modules"]) == set()
    assert child.stderr == ""
    assert found["environment"]
    assert found["threads"] == 1
    assert not found["distributed"]


@pytest.mark.parametrize(
    "name", ["detect", "soften", "save", "load", "WeMaskConfig", "answers", "statistics"]
)
def test_public_names_can_be_reached(name):
    assert getattr(wemask, name) is not None
    assert name in dir(wemask)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        wemask.no_such_name  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        check=True,
        capture_output=True,
        timeout=100,
        cwd=ROOT,
    )
    (path,) = folder.glob("*.whl")
    return path


def files_below(*folders: str, suffixes: tuple[str, ...] = ()) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and (not suffixes or path.suffix in suffixes)
    }


def test_the_wheel_holds_code_configs_and_the_embedded_model(wheel):
    assert wheel.name == f"wemask-{wemask.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = files_below("wemask")
    assert package - names == set()
    configs = {f"wemask/{name}" for name in files_below("conf")}
    assert configs - names == set()
    for needed in (
        "wemask/conf/train.yaml",
        "wemask/embedded/tiny/model.safetensors",
        "wemask/embedded/tiny/tokenizer.json",
    ):
        assert needed in names
    assert any(re.fullmatch(r"wemask/evaluate/tasks/\w+\.yaml", name) for name in names)
    assert any(re.fullmatch(r"wemask/report/templates/\w+\.html", name) for name in names)
    information = f"wemask-{wemask.__version__}.dist-info"
    assert f"{information}/licenses/LICENSE" in names
    others = {name for name in names if not name.startswith(("wemask/", f"{information}/"))}
    assert others == set()  # no tests, no outputs, nothing at the top of site-packages
    assert wheel.stat().st_size < 12_000_000


def test_the_wheel_works_without_the_repository(wheel, tmp_path):
    """Detection on `tiny` needs the code, the configs and the model, all from the wheel."""
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import wemask; print(wemask.__file__)\n"
        "from wemask.cli import main; sys.exit(main())\n"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", code, "detect", "--model", "tiny"],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.startswith(str(installed))


def test_the_embedded_model_is_small_enough():
    size = sum((ROOT / name).stat().st_size for name in files_below("wemask/embedded/tiny"))
    assert size <= 10_000_000


def test_nothing_is_pickled():
    shipped = files_below("wemask", "conf", "tests")
    assert [n for n in shipped if n.endswith((".pt", ".pth", ".bin", ".pkl", ".pickle"))] == []


def test_ci_runs_the_command_that_the_readme_gives():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make demo", "make test"):
        assert command in readme
    assert re.search(r"^make test\b", ci, re.MULTILINE)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".pre-commit-config.yaml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make (?:--[a-z-]+ )*([a-z][a-z-]*)", text, re.M))
        assert named - targets == set(), name


def test_hooks_fetch_nothing():
    """Every pre-commit hook is local and starts a program that the dev extra installs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        program = Path(hook["entry"].split()[0])
        assert program.parent == Path(".venv/bin")
        assert (Path(sys.executable).parent / program.name).is_file(), program
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"],
        check=True,
        timeout=60,
        cwd=ROOT,
    )


def test_the_image_is_made_of_the_pins():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install[^\n]*", dockerfile)
    assert installs
    for install in installs:
        assert "-c constraints.txt" in install or "--no-deps" in install, install
    assert re.search(r"^USER \d+", dockerfile, re.MULTILINE)
    assert not re.search(r"^USER (0|root)", dockerfile, re.MULTILINE)
    assert 'ENTRYPOINT ["python", "train.py"]' in dockerfile
    # The tag names the CUDA release that the pinned torch is built with.
    assert re.search(r"^ARG BASE=nvidia/cuda:\d+\.\d+\.\d+-runtime-\w+$", dockerfile, re.MULTILINE)
