"""Whatever results.json the schema lets through can be rendered: no hole between the two."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import made_up

from wemask.compare.results import validate_results
from wemask.errors import DataError
from wemask.report.report import render_html, render_markdown, terminal_table

ODD = (None, "x", "", 5, -1, 10**12, 1e308, -1e308, 0, [], {}, [5], {"a": 1}, True)


def whole() -> Any:
    """The made-up results with every kind of row."""
    results = made_up()
    other = {"unit": "seeds", "units": 3, "low": -0.1, "high": 0.1, "p_value": 0.5, "test": "t"}
    results["comparisons"][0]["others"] = [{**other, "minimum_detectable": None}]
    pair = {"task": "arith", "arm": "sft", "seed_a": 1, "seed_b": 0, "delta": 0.1}
    results["same"] = [{**pair, "low": 0.0, "high": 0.2, "p_value": 0.1}]
    return results


def places(values: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, and of a list to those in its first two."""
    inner = values.items() if isinstance(values, dict) else enumerate(values[:2])
    for key, value in inner:
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))


WHOLE = whole()


@given(st.sampled_from([*places(WHOLE)]), st.sampled_from(ODD))
@settings(max_examples=300)
def test_what_the_schema_accepts_is_rendered(way: tuple[Any, ...], value: Any) -> None:
    changed = inner = copy.deepcopy(WHOLE)
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    try:
        results = validate_results(json.loads(json.dumps(changed)))
    except DataError:
        return
    assert render_html(results, [], {}) and render_markdown(results, [], {})
    assert terminal_table(results).row_count
