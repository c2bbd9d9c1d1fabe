"""The table of statistics holds the record, the tables, the screens and README to one list."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from apr_tui.render import pair, stage
from core.bundle.tables import STATS_COLUMNS, TOKENS_COLUMNS, WHOLE, token_columns
from core.trace.metrics import METRICS, RATIO, SIZES, STATS, markdown
from core.trace.stats import Stats
from tests.support.traces import token_stats, values


def test_each_field_of_the_record_is_a_row_of_the_table_in_order_and_of_its_type():
    assert [(s.name, "int | None" if s.is_whole else "float | None") for s in STATS] == [
        (f.name, f.type) for f in fields(Stats)]


def test_each_statistic_is_a_column_of_both_tables_and_each_whole_number_stays_one():
    names = tuple(s.name for s in STATS)
    assert ("layer", "stage", "scope", *names) == STATS_COLUMNS
    assert ("layer", "stage", "token", "token_id", *(n for n in names if n != "peak_token")) == TOKENS_COLUMNS
    assert set(token_columns(token_stats(values()[0, "qkv"]))) == set(TOKENS_COLUMNS[4:])
    assert WHOLE == ("layer", "token", "token_id", "count", "nan", "inf", "zero", "peak_token", "peak_channel",
                     "nan_token", "nan_channel")


def test_the_grid_shows_std_first_and_the_ratio_last():
    assert METRICS == ("std", "mean", "min", "max", "absmax", "l2", "nan", "inf", "zero", "ratio")
    assert SIZES == ("std", "absmax", "l2")


def test_the_pages_show_what_the_table_has():
    assert sorted(pair.FIELDS) == sorted(s.name for s in STATS if not s.is_place)
    assert {name for name, _, _ in stage.COLUMNS} <= {s.name for s in STATS}


def test_readme_has_the_table_between_its_marks():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- core/trace/metrics.py -->\n")
    assert rest.partition("\n<!-- end -->")[0] == markdown()


@pytest.mark.parametrize("one", [*STATS, RATIO], ids=lambda one: one.name)
def test_a_statistic_says_how_it_is_made_without_breaking_a_table(one):
    assert one.formula and one.unit and "|" not in one.formula
