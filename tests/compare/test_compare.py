"""Arms in pairs: which pairs, over which units, and the document that comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import entry, facts, result
from hypothesis import given, settings
from hypothesis import strategies as st

from wemask.compare import paired as statistics
from wemask.compare.compare import compare, compare_all, document, pairs, same_pairs
from wemask.compare.evaluated_runs import Entry, group
from wemask.compare.results import validate_results


def rows(*entries: Entry) -> list[dict[str, Any]]:
    groups = group(entries)
    return document(groups, Path(), facts())["comparisons"]


def test_differences_are_those_of_the_paired_items() -> None:
    earlier, later = [True, False, False, False] * 10, [True, True, True, False] * 10
    (row,) = rows(entry("base", earlier), entry("sft", later, 0))
    assert (row["a"], row["b"], row["n"], row["unit"]) == ("sft", "base", 40, "items")
    assert row["delta"] == pytest.approx(0.5)
    assert (row["a_only"], row["b_only"]) == (20, 0)
    assert row["p_holm"] == row["p_value"] < 0.001


def test_holm_is_over_the_pairs_of_a_kind() -> None:
    wins = [[True] * k + [False] * (40 - k) for k in (5, 15, 30)]
    arms = ("base", "training_free", "sft", "random_dims")
    found = rows(*(entry(arm, wins[i % 3]) for i, arm in enumerate(arms)))
    for kind in ("main", "control"):
        family = [row for row in found if row["kind"] == kind]
        expected = statistics.holm([row["p_value"] for row in family])
        assert [row["p_holm"] for row in family] == pytest.approx(expected)
    assert [len([r for r in found if r["kind"] == k]) for k in ("main", "control")] == [3, 2]


def test_seeds_of_one_arm_are_one_arm_and_are_tested_over_seeds() -> None:
    rng = np.random.default_rng(0)
    entries = [
        entry(arm, (rng.random(200) < share + 0.05 * seed).tolist(), seed)
        for seed in range(5)
        for arm, share in (("sft", 0.3), ("wemask_sft", 0.5))
    ]
    groups = group(entries)
    assert {arm: [run.seed for run in runs] for arm, runs in groups.items()} == {
        "sft": [0, 1, 2, 3, 4],
        "wemask_sft": [0, 1, 2, 3, 4],
    }
    row = compare("t", groups["wemask_sft"], groups["sft"])
    means = [[run.results["t"].accuracy for run in runs] for runs in groups.values()]
    over_seeds = statistics.compare_seeds(means[1], means[0])
    units = {e["unit"]: e for e in (row, *row["others"])}
    assert units["seeds"]["p_value"] == over_seeds.p_value
    assert units["seeds"]["units"] == 5
    assert row["p_value"] == max(e["p_value"] for e in units.values())
    assert row["delta"] == pytest.approx(over_seeds.delta)
    same = same_pairs(groups)
    assert [(r["arm"], r["seed_a"], r["seed_b"]) for r in same[:2]] == [
        ("sft", 1, 0),
        ("sft", 2, 1),
    ]
    assert len(same) == 8


def test_an_arm_without_a_seed_stands_beside_every_seed() -> None:
    groups = group(
        [entry("base", [True] * 5 + [False] * 15)]
        + [entry("random_dims", [True] * (5 + k) + [False] * (15 - k), k) for k in range(3)]
    )
    row = compare("t", groups["random_dims"], groups["base"])
    units = {e["unit"]: e for e in (row, *row["others"])}
    expected = statistics.compare_seeds([5 / 20, 6 / 20, 7 / 20], [5 / 20] * 3)
    assert units["seeds"]["p_value"] == expected.p_value


def test_clusters_widen_the_interval_where_items_share_a_source() -> None:
    clusters = [f"c{i // 10}" for i in range(200)]
    a = result([(i // 10) % 2 == 0 for i in range(200)], clusters=clusters)
    b = result([i % 3 == 0 for i in range(200)], clusters=clusters)
    found = compare("t", [entry("sft", [], 0, a)], [entry("base", [], None, b)])
    units = {e["unit"]: e for e in (found, *found["others"])}
    assert found["unit"] == "clusters" and found["units"] == 20
    width = {unit: e["high"] - e["low"] for unit, e in units.items()}
    assert width["clusters"] > 1.5 * width["items"]
    assert units["clusters"]["minimum_detectable"] > 1.5 * units["items"]["minimum_detectable"]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_turning_a_comparison_around_turns_its_numbers_around(pairs: Any, seeds: int) -> None:
    rng = np.random.default_rng(len(pairs))
    a, b = (
        [entry(arm, rng.permutation([p[k] for p in pairs]).tolist(), s) for s in range(seeds)]
        for k, arm in enumerate(("sft", "wemask_sft"))
    )
    one, other = compare("t", a, b), compare("t", b, a)
    assert one["delta"] == pytest.approx(-other["delta"])
    assert one["p_value"] == pytest.approx(other["p_value"])
    assert one["a_only"] == other["b_only"]
    assert one["low"] <= one["delta"] + 1e-12 and one["delta"] <= one["high"] + 1e-12


def test_many_arms_are_compared_with_their_reference_only() -> None:
    info = {
        name: {"arm": name.split()[0], "again": False, "control_of": None, "reference": reference}
        for name, reference in (
            ("base", None),
            *((f"training_free ({i})", "base") for i in range(6)),
        )
    }
    assert pairs(info) == [(f"training_free ({i})", "base", "main") for i in range(6)]
    few = dict(list(info.items())[:3])
    assert len(pairs(few)) == 3


def test_the_document_follows_the_schema_and_names_what_misleads() -> None:
    entries = [entry("base", [False] * 40), entry("sft", [False] * 39 + [True], 0)]
    made = document(group(entries), Path(), {**facts(), "absent": {"wrong_layers": "none"}})
    assert validate_results(json.loads(json.dumps(made))) == made
    impossible, near_zero = made["notes"]
    assert impossible == "wrong_layers is not possible here: none"
    assert "near zero on every arm" in near_zero
    assert made["arms"]["sft"]["t"]["runs"][0]["run_folder"] == "run/sft/0"
    better = document(group([entry("base", [True] * 4)]), Path(), facts())
    assert better["notes"] == [] and better["comparisons"] == []


def test_a_run_whose_massive_activation_is_gone_is_named() -> None:
    arms = [entry("sft", [True] * 4, 0), *(entry("wemask_sft", [True] * 4, s) for s in (0, 1))]
    found = [{"layers": 3, "silent": silent} for silent in ([], [2, 4])]
    told = [
        Entry(about={**arm.about, "softened": softened}, results=arm.results)
        for arm, softened in zip(arms[1:], found, strict=True)
    ]
    made = document(group([arms[0], *told]), Path(), facts())
    assert validate_results(json.loads(json.dumps(made))) == made
    assert made["arm_info"]["wemask_sft"]["softened"] == found
    assert "softened" not in made["arm_info"]["sft"]
    assert made["notes"] == [
        "wemask_sft, seed 1: SFT has removed the massive activation: the softening touches nothing "
        "in 2 of 3 layers."
    ]


def test_tasks_that_only_some_arms_have_are_compared_where_they_can_be() -> None:
    first = entry("base", [True, False])
    both = Entry(
        about=entry("sft", [], 0).about,
        results={"t": result([True, True]), "u": result([True], "u")},
    )
    made = document(group([first, both]), Path(), facts())
    assert [(row["task"], row["a"]) for row in made["comparisons"]] == [("t", "sft")]
    assert set(made["arms"]["sft"]) == {"t", "u"} and set(made["arms"]["base"]) == {"t"}


def test_the_interval_of_a_share_is_of_shares() -> None:
    draws = result([True, False, False])  # two draws of one item, and another: scores of 0.5 and 0
    for sample, key, draw in zip(draws.samples, ("0", "0", "1"), (0, 1, 0), strict=True):
        sample.update(id=key, draw=draw)
    made = document(group([entry("base", [], None, draws)]), Path(), facts())
    score = validate_results(made)["arms"]["base"]["t"]
    assert (score["mean"], score["low"], score["high"]) == (0.25, 0.0, 1.0)


def test_compare_all_of_nothing_is_nothing() -> None:
    assert compare_all({}, {}) == []
