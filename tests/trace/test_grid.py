"""The grid: one rule to shorten numbers, the marks, every metric, and the printed form in 80 columns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.bundle.grid_text import cell_text, grid_text, header_lines
from core.model.stages import GRID_STAGES
from core.system.numbers import short
from core.trace.grid import marks, value
from core.trace.hints import find_hints
from core.trace.metrics import METRICS
from core.trace.stats import ScopeStats, Stats
from tests.support.traces import cells_of, published_cells, trace_of


@pytest.mark.parametrize("x,text", [
    (11.459, "11.459"), (0.0021, "0.0021"), (1.2e-7, "1.2e-7"), (-1.2e-7, "-1.2e-7"), (math.nan, "nan"),
    (math.inf, "inf"), (-math.inf, "-inf"), (None, "-"), (0.0, "0"), (17.23, "17.230"), (123.456, "123.46"),
    (99999.96, "100000"),
    (999999.6, "1.0e6"), (1.5e10, "1.5e10"), (-1.5e10, "-1.5e10"), (-11.459, "-11.459"), (152064, "152064"), (7, "7"),
    (0.99996, "1.0000"), (5e-324, "5e-324"),
])
def test_a_number_is_shortened_by_one_rule(x, text):
    assert short(x) == text


def test_no_number_is_wider_than_its_cell():
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal(2000) * 10.0 ** rng.integers(-320, 300, 2000)).tolist():
        assert len(short(x)) <= 7 and len(short(x, 6)) <= 6, x
        assert len(cell_text(x, "X")) == 7 and cell_text(x, "X")[0] == "X"


def test_a_shortened_number_is_near_the_number():
    for x in 10 ** np.linspace(-9, 9, 500):
        assert abs(float(short(float(x))) - x) <= 0.05 * x


def test_powers_that_leave_no_room_for_a_decimal_lose_it():
    assert short(1.3e-30) == "1e-30" and short(-1.3e-30) == "-1e-30"


def test_marks_say_bad_watch_absent_and_not_judged():
    cells = published_cells() | {(5, "qkv"): ScopeStats({"all": Stats(std=None, count=1)})}
    cells[6, "ffn_norm"] = ScopeStats({"all": Stats(std=1.0, nan=1)})
    found = marks(cells, "all")
    bad = [(3, "ffn_swigl"), (3, "ffn_out"), (3, "output"), (6, "ffn_norm")]
    assert [p for p, m in found.items() if m == "X"] == bad
    assert found[3, "ffn_silu"] == "!" and found[0, "ffn_out"] == "."
    assert found[5, "qkv"] == "?" and found[4, "qkv"] == "-"
    assert sum(m == "!" for m in found.values()) == 1


def test_every_metric_is_a_number_of_the_cell():
    cells = cells_of({(0, "qkv"): np.array([[1.0, -2.0]]), (1, "qkv"): np.array([[2.0, -4.0]])}, 1)
    want = {"mean": -1.0, "min": -4.0, "max": 2.0, "absmax": 4.0, "nan": 0, "inf": 0, "zero": 0, "ratio": 2.0,
            "std": math.sqrt(18), "l2": math.sqrt(20)}
    assert {m: value(cells, (1, "qkv"), "all", m) for m in METRICS} == want
    assert value(cells, (1, "qkv"), "rest", "std") is None and value(cells, (9, "qkv"), "all", "std") is None


def test_the_printed_grid_fits_80_columns_and_marks_the_spike():
    trace = trace_of(published_cells(), planted="scale@4.attn_out\x1b[31m")
    lines = grid_text(trace, "all", findings=find_hints(trace)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("PLANTED scale@4.attn_out\\x1b[31m")
    assert lines[1] == "tiny.gguf  qwen2  apr-tui  f32  cpu" and lines[2] == "std at scope all, 7 tokens"
    row = next(line for line in lines if line.startswith("    3"))
    assert row.endswith("!0.1679X1.2216X11.459X11.776") and row.count("      -") == 6
    assert lines[-1].startswith("X above 10 x the layer before")


def test_the_headers_stand_over_their_columns():
    top, bottom = header_lines()
    for i, stage in enumerate(GRID_STAGES):
        cut = slice(5 + 7 * i, 12 + 7 * i)
        assert stage in (f"{top[cut].strip()}_{bottom[cut].strip()}", bottom[cut].strip())


def test_layers_that_were_not_traced_are_not_printed():
    cells = {place: cell for place, cell in published_cells().items() if place[0] in (5, 6)}
    lines = grid_text(trace_of(cells), "all").splitlines()
    assert [line.split()[0] for line in lines[4:-1]] == ["5", "6"]
