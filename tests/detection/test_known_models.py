"""The published table against names as the hub has them, and against detections."""

from dataclasses import replace

import pytest
from families import shared

from wemask import MELayerReport
from wemask.detection.known_models import KNOWN, compare_with_published


def report(layers: list[int], dims: list[int]) -> MELayerReport:
    layer = layers[0] if layers else None
    return replace(shared().report, found=bool(layers), layer=layer, dims=dims)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("/models/Mistral-7B-v0.1/", "mistral-7b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("allenai/OLMo-2-1124-7B", "olmo-2-1124-7b"),
        ("openai-community/gpt2", "gpt2"),
        ("google/gemma-2-2b-it", "gemma-2-2b"),
        ("microsoft/phi-4", "phi-4"),
    ],
)
def test_hub_names_are_recognised(name, key):
    layers, dims = KNOWN[key]
    right = compare_with_published(name, report(list(layers), list(dims)))
    assert right is not None and right.endswith("This detection agrees.")
    wrong = compare_with_published(name, report([11], [31]))
    assert wrong is not None and wrong.endswith("This detection DIFFERS.")


@pytest.mark.parametrize(
    "name",
    ["openai-community/gpt2-xl", "microsoft/Phi-4-mini-instruct", "Qwen/Qwen3-0.6B", "tiny", ""],
)
def test_other_models_are_not_compared(name):
    assert compare_with_published(name, report([1], [3])) is None


def test_published_numbers_are_said():
    said = compare_with_published("meta-llama/Llama-2-7b-hf", report([1], [9]))
    expected = "Published for llama-2-7b-hf: ME Layer 1, dims 2533, 1415. This detection DIFFERS."
    assert said == expected
    none = compare_with_published("allenai/OLMo-2-1124-7B", report([], []))
    assert none == "Published for olmo-2-1124-7b: no ME Layer. This detection agrees."
