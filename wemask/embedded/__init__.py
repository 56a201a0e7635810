"""What wemask carries with it: the model `tiny` and a generator of word problems.

`TINY_PATH` is a plain Hugging Face folder: `AutoModelForCausalLM.from_pretrained(TINY_PATH)`. How
it was made is in `recipes/tiny/` of the repository. May import errors only.
"""

from pathlib import Path

TINY_PATH: Path = Path(__file__).resolve().parent / "tiny"

__all__ = ["TINY_PATH"]
