"""docker/: the build context, what a change builds anew, compose; the steps, run without Docker."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dockerfile
import image_root
import pytest
import yaml
from clean_environment import environment

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
IGNORE = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8")
STAGES = dockerfile.read((DOCKER / "Dockerfile").read_text(encoding="utf-8"))
STAGE = {stage.name: stage for stage in STAGES}
FILES = dockerfile.context(ROOT, IGNORE)
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SECRETS = {"HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE"}


# ---- the language ----


def test_steps_are_read_as_docker_reads_them():
    text = """# a comment
ARG BASE=image:1
FROM ${BASE} AS one
RUN --mount=type=cache,target=/c a \\
    # a comment between two lines
    && b 'x \\
y'
FROM one
COPY --link --from=one /p /q
"""
    first, second = dockerfile.read(text)
    assert (first.name, first.base, second.base) == ("one", "image:1", "one")
    assert first.steps[0].text == "a     && b 'x y'"
    assert first.steps[0].mounts == [{"type": "cache", "target": "/c"}]
    assert second.steps[0].sources == ["/p"]
    assert second.steps[0].stages == ["one"]


def test_an_unknown_instruction_is_not_passed_over():
    with pytest.raises(ValueError, match="ADD"):
        dockerfile.read("FROM scratch\nADD a b\n")


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("a", True),
        ("a/b", True),
        ("kept", False),
        ("kept/x/y.py", False),
        ("kept/x/y.pyc", True),
        ("kept/__pycache__/y.txt", True),
        ("kept/x/__pycache__/y.txt", True),
        ("kept2", True),
    ],
)
def test_ignore_rules_follow_docker(path, ignored):
    rules = dockerfile.rules("# rules\n*\n!kept/\n**/__pycache__\n**/*.py[cod]\n")
    assert dockerfile.is_ignored(path, rules) is ignored


# ---- the build context ----


def test_the_context_holds_what_the_image_needs_and_nothing_else(tmp_path):
    assert {name.split("/")[0] for name in FILES} == {
        "README.md", "LICENSE", "constraints.txt", "pyproject.toml",
        "train.py", "evaluate.py", "conf", "wemask",
    }  # fmt: skip
    for name in (
        "wemask/a.py",
        "wemask/__pycache__/a.pyc",
        "wemask/.DS_Store",
        ".env",
        "outputs/a",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(dockerfile.context(tmp_path, IGNORE)) == {"wemask/a.py"}


def test_every_file_of_the_context_is_copied_by_some_step():
    steps = [step for stage in STAGES for step in stage.steps if step.op == "COPY"]
    taken = {n for s in steps if not s.flag("from") for n in dockerfile.copied(s, FILES)}
    assert taken == set(FILES)


# ---- layers ----


def changed_with(tmp_path: Path, name: str, text: str, **outputs: str) -> list[tuple[str, str]]:
    edited = tmp_path / "edited"
    edited.write_text(text, encoding="utf-8")
    return dockerfile.changed(STAGES, FILES, FILES | {name: edited}, outputs or None)


CODE = [
    ("package", "COPY wemask/ wemask/"),
    ("package", "RUN pip wheel"),
    ("runtime", "RUN pip install"),
    ("runtime", "COPY train.py evaluate.py ./"),
]


def starts(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The steps that make a layer, by the two first words of a RUN."""
    short = [(s, " ".join(t.split()[:3]) if t.startswith("RUN") else t) for s, t in steps]
    return [(s, t) for s, t in short if t.startswith(("RUN", "COPY"))]


def test_a_change_in_the_code_repeats_the_wheel_and_its_installation_only(tmp_path):
    assert starts(changed_with(tmp_path, "wemask/operator/settings.py", "# another\n")) == CODE
    assert starts(changed_with(tmp_path, "wemask/new_module.py", "")) == CODE
    wheel, install = (STAGE[s].steps for s in ("package", "runtime"))
    for step in (*wheel, *install):
        if step.text.startswith(("pip wheel", "pip install")) and "-c constraints" not in step.text:
            assert "--no-deps" in step.text  # nothing is resolved, nothing is fetched
    assert "--no-index" in next(s.text for s in install if s.text.startswith("pip install"))


def test_a_new_time_stamp_changes_nothing(tmp_path):
    copy = tmp_path / "operator.py"
    shutil.copy(FILES["wemask/operator/settings.py"], copy)
    os.utime(copy, (0, 0))
    assert dockerfile.changed(STAGES, FILES, FILES | {"wemask/operator/settings.py": copy}) == []


def test_the_environment_is_copied_before_the_code_and_depends_on_pins_alone(tmp_path):
    steps = [str(step) for step in STAGE["runtime"].steps]
    venv = next(i for i, text in enumerate(steps) if text == "COPY /opt/venv /opt/venv")
    code = next(i for i, text in enumerate(steps) if text.startswith("RUN pip install"))
    assert venv < code
    assert STAGE["runtime"].steps[venv].stages == ["dependencies"]
    again = changed_with(tmp_path, "constraints.txt", "torch==0\n")
    assert ("runtime", "COPY /opt/venv /opt/venv") in again
    assert starts(changed_with(tmp_path, "train.py", "")) == [CODE[-1]]


def requirements(tmp_path: Path, text: str) -> tuple[str, str]:
    """What the `requirements` stage writes for a pyproject.toml: the Dockerfile's own command."""
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    (step,) = (step for step in STAGE["requirements"].steps if step.op == "RUN")
    command = [sys.executable, *shlex.split(step.text)[1:]]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
    first, second = (tmp_path / n for n in ("requirements.txt", "build-requirements.txt"))
    return first.read_text(encoding="utf-8"), second.read_text(encoding="utf-8")


def test_only_a_requirement_in_pyproject_touches_the_environment(tmp_path):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    before = requirements(tmp_path, text)
    assert "torch>=" in before[0]
    assert "deepspeed>=" in before[0]
    assert "pytest" not in before[0]
    assert before[1].startswith("hatchling>=")
    assert requirements(tmp_path, text.replace("line-length = 100", "line-length = 99")) == before
    assert requirements(tmp_path, text.replace('"tqdm>=4.66,<5"', '"tqdm>=4.67,<5"')) != before
    # BuildKit compares what the stage wrote, so equal lists keep the environment.
    again = changed_with(
        tmp_path, "pyproject.toml", text + "\n# more\n", requirements="equal lists"
    )
    assert {stage for stage, _ in again} == {"requirements", "package", "runtime"}
    assert ("runtime", "COPY /opt/venv /opt/venv") not in again


def test_what_runs_is_not_root_and_is_watched():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image_root.last(STAGES, "USER").text)
    assert "nvidia-smi -L" in image_root.last(STAGES, "HEALTHCHECK").text
    variables = {}
    for step in STAGE["runtime"].steps:
        variables |= dockerfile.settings(step) if step.op == "ENV" else {}
    volumes = image_root.last(STAGES, "VOLUME").text
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        assert variables[name].startswith("/cache"), name
    assert '"/cache"' in volumes
    assert variables["WANDB_MODE"] == "offline"
    assert not SECRETS & variables.keys() - {"WANDB_MODE"}


def test_the_debian_stand_in_knows_every_package():
    assert {"gcc", "g++", "python3", "python3-dev"} <= set(image_root.packages(STAGES))
    assert image_root.without_dnf("dnf install -y a   && dnf clean all") == ""
    assert image_root.without_dnf("dnf install a && b && dnf clean all && c") == "b && c"


# ---- compose ----


def test_compose_follows_the_specification():
    program = Path(sys.executable).parent / "check-jsonschema"
    words = ["--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"]
    child = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert child.returncode == 0, child.stdout + child.stderr


def test_compose_has_the_four_services_on_all_gpus():
    services = COMPOSE["services"]
    commands = {name: " ".join(service["entrypoint"]) for name, service in services.items()}
    assert commands == {
        "train": "python train.py",
        "evaluate": "python evaluate.py",
        "analyse": "wemask analyse",
        "detect": "wemask detect",
    }
    for name, service in services.items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        assert service["profiles"] == [name]  # a bare `up` starts nothing
        assert service["shm_size"].endswith("gb}")
        assert service["init"] is True


def test_compose_passes_secrets_on_and_holds_none():
    for service in COMPOSE["services"].values():
        assert service["environment"].keys() >= SECRETS
        assert set(service["environment"].values()) == {None}
    assert not re.search(r"hf_[A-Za-z0-9]{8}", (DOCKER / "compose.yaml").read_text("utf-8"))


def test_compose_builds_and_mounts_what_is_there():
    service = COMPOSE["services"]["train"]
    assert (DOCKER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    outputs, *volumes = service["volumes"]
    assert (DOCKER / outputs["source"]).resolve() == ROOT / "outputs"
    assert outputs["target"] == "/app/outputs"
    named = {volume.rpartition(":")[2]: volume.rpartition(":")[0] for volume in volumes}
    assert named == {"/cache": "cache", "/cache/huggingface": "${WEMASK_HF_CACHE:-huggingface}"}
    assert COMPOSE["volumes"].keys() == {"cache", "huggingface"}


# ---- the page ----


def test_the_page_names_services_variables_and_files_that_exist():
    page = (DOCKER / "README.md").read_text(encoding="utf-8")
    compose = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    services = re.findall(r"docker/compose\.yaml run --rm (\w+)", page)
    assert set(services) == COMPOSE["services"].keys()
    assert set(re.findall(r"\bWEMASK_\w+", page)) == set(re.findall(r"\bWEMASK_\w+", compose))
    base = re.search(r"nvidia/cuda:([\d.]+)", STAGES[0].base)
    assert base is not None
    assert set(re.findall(r"nvidia/cuda:([\d.]+)", page)) == {base[1]}
    for words in (
        "apptainer build wemask.sif docker-daemon://wemask:latest",
        "docker-archive://",
        "enroot import -o wemask.sqsh dockerd://",
        "--container-image=",
    ):
        assert words in page


# ---- the steps, run ----


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("debootstrap") is None,
    reason="NOT RUN, needs root and debootstrap: apt-get install debootstrap",
)
def test_the_steps_of_the_dockerfile_run_in_a_debian_root():
    """The one test with a network, for packages: its child gets the machine's environment."""
    ours = environment(Path(), gpu=False)
    with subprocess.Popen(
        [sys.executable, "tests/support/image_root.py"],
        env={name: value for name, value in os.environ.items() if name not in ours},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        try:
            printed, _ = child.communicate()
        finally:
            child.terminate()  # it cleans up; when it has ended, this does nothing
    print(printed)
    assert child.returncode == 0, printed[-6000:]
