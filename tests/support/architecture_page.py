"""docs/architectures.md: structure, detection and contract of every family, as measured.

make architectures: some minutes
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_contract import (
    LINES,
    SEEDS,
    checkpointed,
    detection_errors,
    identical,
    softened,
    unclean_errors,
)
from families import FAMILIES, NO_PACKING, planted
from torch import nn

from wemask.decoder.parts import Block, find_decoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
COLUMNS = (
    *("family", "layout", "norm", "dims choices", "detection", "unclean"),
    *("false finds", "off", "padding", "cache", "packing", "ckpt"),
)
TEXT = """# Architectures

Written by `make architectures`, which ran everything below with transformers VERSION,
torch TORCH, on a CPU. Random-init models of each family, 32 wide with 5 layers; no real weights.
"Sandwich" has norms before and after a part.

- **dims choices**: those of `operator.dims`. Post-norm models have no norm before attention or FFN
  whose weight could be read, OLMo-1 has norms without weight.
- **detection**: a massive activation is planted; layer, dims, magnitude, and one token, two tokens
  or a later delimiter are drawn by seed. Exact means the ME Layer, all dims and magnitudes, and
  every place of the tokens. Criterion `sun2024`; float32 · bfloat16.
- **unclean**: as real models are. In models of 8 layers, massive tokens that differ by five times
  and more grow 1.3 to 2.3 times a layer, another dim takes the lead, weaker tokens are born two to
  four layers later, tokens of a chat template are among both, and ordinary tokens come within a
  sixth of the smallest. Exact means the ME Layer, all emergences and no growth, and in every later
  layer the tokens that its gate picks, all and primary ones, on documents that calibration did not
  see.
- **false finds**: on the same model without the planted neuron.
- **off**: strength 0, and a removed softening, give the unpatched logits bit for bit, under
  unchanged parameter names; strength 1 changes them.
- **padding, cache, packing**: largest difference of logits, in units of the largest, in float32
  with `tokens=massive`: a left or right padded batch against each row alone; prefill and single or
  chunked steps against one forward; packed documents against each alone. 1e-05 or less passes.
  "model mixes": unpatched, the model lets packed documents see each other, because its mask does
  not read `position_ids`.
- **ckpt**: gradients under activation checkpointing equal those without.

TABLE

`qwen3_next` mixes attention with linear attention, and both are to be named:
`model.wemask_parts = {"attention": ["self_attn", "linear_attn"]}`. `tokens=first` is
refused in `mpt`, whose masks mark what is hidden; `tokens=massive`, the default, works.

Any other family is found by the same rule (`wemask/decoder/parts.py`), or refused with the part
that was not found and the override to type. Refused: residuals of several streams (DeepSeek-V4),
recurrent models without attention (Mamba), BERT-like decoders.
"""


def columns(model: nn.Module) -> list[str]:
    """Norm layout, kind of norm, and which dims choices need what this model has not."""
    block = find_decoder(model).blocks[-1]
    norm = block.attention_norm or _norm_after(block)
    weights = getattr(block.attention_norm, "weight", None) is not None
    kind = "no weight" if getattr(norm, "weight", None) is None else _form(norm)
    return [_layout(block), kind, "all" if weights else "no me_norm, attn_norm, lowest"]


def _norm_after(block: Block) -> Any:
    return next(m for m in block.layer.children() if "norm" in type(m).__name__.lower())


def _layout(block: Block) -> str:
    if block.attention_norm is None:
        return "post-norm"
    if block.attention_norm is block.ffn_norm:
        return "parallel, one norm"
    names = [n for n, m in block.layer.named_children() if "norm" in type(m).__name__.lower()]
    if len(names) > 2:
        return "sandwich"
    parallel = getattr(block.layer, "use_parallel_residual", False)
    return "parallel, two norms" if parallel else "pre-norm"


@torch.no_grad()
def _form(norm: Any) -> str:
    """Asked of the norm itself: does it take the mean away, does weight 0 mean scale 1?"""
    probe = copy.deepcopy(norm).float()
    ones = torch.ones(1, 1, norm.weight.shape[0])
    bias = getattr(probe, "bias", None)
    if bias is not None:
        bias.zero_()
    centred = float(probe(ones).abs().max()) < 1e-3
    probe.weight.zero_()
    ones[..., ::2] = -1
    shifted = float(probe(ones).abs().max()) > 0.5
    return ("LayerNorm" if centred else "RMSNorm") + (", 1 + w" if shifted else "")


def measured(family: str) -> str:
    """One row of the table: structure, detection over all seeds, the lines of the contract."""
    dtypes = (torch.float32, torch.bfloat16)
    errors = [[detection_errors(family, seed, d) for d in dtypes] for seed in SEEDS]
    unclean = [[unclean_errors(family, seed, d) for d in dtypes] for seed in SEEDS]
    false = [["false find" in " ".join(e) for e in row] for row in errors]
    cells = [_counted([not e for e in row] for row in table) for table in (errors, unclean)]
    cells.append(_counted(false))
    case = planted(family)
    cells.append("yes" if identical(case) else "NO")
    for line, measure in LINES.items():
        own = measure(case.model)
        with softened(case) as model:
            cells.append("model mixes" if own > 0.1 else f"{measure(model):.0e}")
        assert (own > 0.1) == (line == "packing" and family in NO_PACKING), (family, line, own)
    cells.append("yes" if checkpointed(family) else "NO")
    return "| " + " | ".join([f"`{family}`", *columns(case.model), *cells]) + " |"


def _counted(rows: Iterable[Sequence[bool]]) -> str:
    """How many seeds are true, float32 · bfloat16."""
    return " · ".join(f"{sum(column)}/{len(SEEDS)}" for column in zip(*rows, strict=True))


def main() -> None:
    rows = [measured(family) for family in FAMILIES]
    table = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *rows]
    text = TEXT.replace("VERSION", transformers.__version__).replace("TORCH", torch.__version__)
    PAGE.write_text(text.replace("TABLE", "\n".join(table)))
    print(PAGE)


if __name__ == "__main__":
    main()
