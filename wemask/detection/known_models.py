"""Published ME Layers (0-based) and massive dims, to hold a detection against.

Sun et al. 2024 (arXiv 2402.17762), Owen et al. 2025 (arXiv 2503.22329) and the WeMask paper (arXiv
2605.08504), whose weights were not at hand here; per-layer maxima of 27 checkpoints (arXiv
2605.15572); and three models that were measured here.
"""

from wemask.detection.me_layer import MELayerReport

# lower-case part of the hub name -> (ME Layers; empty = none, massive dims; empty = not published)
KNOWN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "llama-2-7b": ((1,), (2533, 1415)),
    "llama-2-13b": ((3,), (4743, 2100)),
    "llama-3.2-1b": ((1,), (400, 698, 2029, 1159)),
    "llama-3.2-3b": ((1,), ()),
    "llama-3-8b": ((1,), (788, 1384, 4062)),
    "mistral-7b": ((1,), (2070,)),
    "mixtral-8x7b": ((1,), ()),
    "phi-2": ((2,), (743,)),
    "phi-4": ((1,), ()),
    "gpt2": ((2,), (447,)),
    "opt-6.7b": ((0,), (2394,)),
    "falcon-7b": ((3,), (2002, 3080)),
    "olmo-7b-0724": ((1,), (269,)),
    "olmo-2-1124-7b": ((), ()),
    "gemma-2-2b": ((4,), (535,)),
    "qwen3-4b": ((6,), ()),
    "qwen3-14b": ((6,), ()),
    "qwen2.5-14b": ((4,), ()),
    # by our rule from the per-layer maxima of arXiv 2605.15572 (tests/support/max_activations.json)
    "qwen2.5-1.5b": ((1,), ()),
    "qwen2.5-7b": ((3,), ()),
    "qwen2.5-32b": ((4,), ()),
    "qwen2.5-vl-3b": ((2,), ()),
    "qwen2.5-vl-7b": ((3,), ()),
    "qwen2.5-vl-32b": ((4,), ()),
    "qwen3-1.7b": ((2,), ()),
    "qwen3-8b": ((6,), ()),
    "qwen3-32b": ((6,), ()),
    "qwen3-30b-a3b": ((2,), ()),
    "qwen3.5-0.8b": ((), ()),
    "qwen3.5-9b": ((), ()),
    "qwen3.5-27b": ((), ()),
    "qwen3.5-35b-a3b": ((), ()),
    "gpt-oss-20b": ((6,), ()),
    "ling-mini": ((1,), ()),  # checkpoints at 5 to 20 T tokens
    "gemma-2-9b": ((), ()),
    "gemma-2-27b": ((0,), ()),
    "gemma-2b": ((), ()),
    "gemma-3-4b": ((0,), ()),
    "gemma-3-27b": ((0,), ()),
    # measured here, on the weights (docs/results)
    "smollm2-135m-instruct": ((11,), (507,)),
    "gemma-3-270m": ((0,), (400,)),
    "qwen2.5-coder-0.5b-instruct": ((2,), (62, 490)),
}

# Other models whose names begin like one of those above.
OTHERS = ("gpt2-medium", "gpt2-large", "gpt2-xl", "phi-4-mini", "phi-4-multimodal")


def compare_with_published(name: str, report: MELayerReport) -> str | None:
    """Whether a detection agrees with what is published of a hub name or folder; None: unknown."""
    base = name.rstrip("/").rpartition("/")[2].lower()
    base = base.removeprefix("meta-")  # Meta-Llama-3-8B
    matches = [key for key in KNOWN if base == key or base.startswith((key + "-", key + "_"))]
    if not matches or base.startswith(OTHERS):
        return None
    layers, dims = KNOWN[max(matches, key=len)]
    published = f"ME Layer {', '.join(map(str, layers))}" if layers else "no ME Layer"
    if dims:
        published += f", dims {', '.join(map(str, dims))}"
    same_dims = not dims or bool(set(dims) & set(report.dims))
    agrees = report.layer in layers and same_dims if layers else not report.found
    return f"Published for {base}: {published}. This detection {'agrees' if agrees else 'DIFFERS'}."
