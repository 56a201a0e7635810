from pathlib import Path
from typing import Any

import pytest
from report_cases import difference, made_up, score

from wemask.compare.results import Results, validate_results
from wemask.compare.verdict import headline, specificity
from wemask.report import study_plots
from wemask.report.figures import build_figures
from wemask.report.report import render_html, render_markdown

BUDGET = {"layers": 1, "dims": 1, "tokens": 1, "removed_energy": 0.25}


def about(arm: str, base: Any, **values: Any) -> Any:
    return {**base, "arm": arm, "method": "training_free", "budget": BUDGET, **values}


def studied(gain: float = 0.2, control: float = 0.0, p: float = 0.001) -> Results:
    """base, training_free and two controls on arith; `control` is what the first control gains."""
    data = made_up()
    info, base = data["arm_info"], data["arm_info"]["base"]
    for arm, reference, real in (
        ("training_free", "base", None),
        ("random_dims", "base", "training_free"),
        ("set_zero", "base", "training_free"),
    ):
        info[arm] = about(arm, base, reference=reference, control_of=real, seeds=[])
        data["arms"][arm] = {"arith": score("arith", "base")}
        data["settings"][arm] = {}
    info["random_dims"]["seeds"] = [0, 1]
    data["comparisons"] = [
        difference("arith", "training_free", "base", gain, 0.05, p, 0.04),
        difference("arith", "training_free", "random_dims", gain - control, 0.05, p, 0.04),
        difference("arith", "random_dims", "base", control, 0.05, 0.9, 0.04),
        difference("arith", "training_free", "set_zero", gain, 0.05, p, 0.04),
        difference("arith", "set_zero", "base", 0.0, 0.05, 0.9, 0.04),
    ]
    for row in data["comparisons"][1:]:
        row["kind"] = "control"
    return validate_results(data)


def test_the_figure_of_controls_has_the_real_arm_and_every_control() -> None:
    figure = study_plots.controls(studied(), "arith", "training_free")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["training-free WeMask", "random dims", "massive set to zero"]
    assert figure.get_suptitle().startswith("arith: 2 of 2 controls differ")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (studied(), "the gain is specific: every one of 2 controls is below it"),
        (
            studied(control=0.18),
            "the gain is not shown to be specific: random dims is not below it (1 of 2 are)",
        ),
        (studied(gain=0.0, p=1.0), "there is no gain that could be specific"),
    ],
    ids=["specific", "random dims do as well", "no gain"],
)
def test_the_verdict_says_whether_a_gain_is_specific(results: Results, words: str) -> None:
    del results["comparisons"][2:3]  # the control's own gain plays no part in it
    assert words in specificity(results, "training_free").replace("\n", " ")


def test_without_controls_nothing_is_said_of_specificity() -> None:
    results = validate_results(made_up())
    assert specificity(results, "training_free") == ""
    assert "specific" not in " ".join(headline(results))


def test_seeds_are_drawn_one_by_one() -> None:
    data = made_up()
    for arm, means in (("sft", (0.5, 0.6)), ("wemask_sft", (0.7, 0.75))):
        data["arm_info"][arm]["seeds"] = [0, 1]
        run = data["arms"][arm]["arith"]["runs"][0]
        data["arms"][arm]["arith"]["runs"] = [
            {**run, "seed": seed, "mean": mean} for seed, mean in enumerate(means)
        ]
    results = validate_results(data)
    assert study_plots.seeded_arms(results, "arith") == {
        "sft": {0: 0.5, 1: 0.6},
        "wemask_sft": {0: 0.7, 1: 0.75},
    }
    figure = study_plots.seeds(results, "arith")
    heights = [[round(float(y), 6) for y in line.get_ydata()] for line in figure.axes[0].lines]  # pyright: ignore
    assert [50.0, 70.0] in heights and [60.0, 75.0] in heights
    assert [55.0, 55.0] in heights and [72.5, 72.5] in heights  # the means
    assert "span up to 10.0 points" in figure.get_suptitle()


def dosed() -> Results:
    data = made_up()
    base = data["arm_info"].pop("training_free")
    del data["arms"]["training_free"], data["settings"]["training_free"]
    data["comparisons"] = []
    for rate, strength, delta in ((0.01, 0.5, 0.0), (0.01, 1.0, 0.1), (0.1, 0.5, -0.1)):
        label = f"training_free (rate={rate}, strength={strength})"
        operator = {"rate": rate, "strength": strength}
        data["arm_info"][label] = about("training_free", base, operator=operator)
        data["arms"][label] = {"arith": score("arith", "base")}
        data["settings"][label] = {}
        p = 0.5 if delta == 0 else 0.001
        data["comparisons"].append(difference("arith", label, "base", delta, 0.05, p, 0.04))
    return validate_results(data)


def test_the_dose_surface_has_each_dose_in_its_place() -> None:
    results = dosed()
    figure = study_plots.dose(results, "arith", "training_free")
    axes = figure.axes[0]
    columns, rows = (
        [tick.get_text() for tick in ticks]
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    shown = {
        t.get_text(): (columns[int(t.get_position()[0])], rows[int(t.get_position()[1])])
        for t in axes.texts
    }
    assert shown == {"0.0": ("0.01", "0.5"), "+10.0*": ("0.01", "1"), "-10.0*": ("0.1", "0.5")}
    assert "2 of 3 doses are clear of zero" in figure.get_suptitle().replace("\n", " ")
    assert study_plots.dose_arms(results, "wemask_sft") == {}  # one dose is no surface
    # Several doses of one arm are summed up in the verdict, by their settings.
    assert "better on arith (rate=0.01, strength=1.0) (+10.0)" in headline(results)[1]


@pytest.mark.parametrize("results", [studied(), dosed()], ids=["controls", "dose"])
def test_the_page_and_the_markdown_show_the_study(results: Results, tmp_path: Path) -> None:
    figures = build_figures(results, None)
    assert all(item.alt for item in figures)
    page, text = render_html(results, figures, {}), render_markdown(results, figures, {})
    if "random_dims" in results["arms"]:
        for content in (page, text):
            assert "Is it specific?" in content and "random dims" in content and "25.0%" in content
    else:
        assert "How much softening" in page
        assert any(item.section == "dose" for item in figures)


def test_aa_pairs_are_counted_and_shown() -> None:
    data = made_up()
    pair = {"task": "arith", "arm": "sft", "seed_a": 1, "seed_b": 0, "delta": 0.1}
    data["same"] = [
        {**pair, "low": 0.05, "high": 0.15, "p_value": 0.001},
        {**pair, "seed_a": 2, "seed_b": 1, "low": -0.05, "high": 0.15, "p_value": 0.4},
    ]
    page = render_html(validate_results(data), [], {})
    assert "A/A: 1 of 2 pairs of runs" in page
