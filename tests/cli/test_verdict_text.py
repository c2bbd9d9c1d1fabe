"""What compare and bisect say as text: two sides of one file by what differs, reasons wrapped, the headline whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from apr_tui.cli.output import bisection_text, comparison_text
from apr_tui.render.pair import verdict_rows
from apr_tui.render.verdict_card import pair_card
from core.proof.verdict import OTHER_WEIGHTS, VERDICTS, Bisection, Comparison, Doubt, Verdict
from core.trace.measures import SideName
from tests.support.fake_session import pair

WIDTH = 80
LONG = "weights: " + "; ".join(f"blk.{i}.ffn_down.weight differs by 0.25 relative (Q4_1, Q5_0)" for i in range(3))
SAID = [*VERDICTS.items(), *((Verdict.INCONCLUSIVE, why) for why in Doubt), (Verdict.H2, OTHER_WEIGHTS)]


def in_bf16(found: Comparison) -> Comparison:
    """The pair of one file that ran in float32 and in bfloat16."""
    facts = (replace(found.a.facts, compute="f32"), replace(found.a.facts, compute="bf16"))
    return replace(found, a=replace(found.a, facts=facts[0]), b=replace(found.a, facts=facts[1]))


def test_a_file_beside_itself_is_titled_by_what_differs():
    found = in_bf16(pair("H3"))
    assert comparison_text(found).startswith(f"A f32 against B bf16, {found.a.name}\n")
    assert comparison_text(pair()).startswith(f"A {pair().a.name} against B tiny.apr\n")


def test_every_line_of_a_verdict_fits_80_columns_and_loses_no_word():
    found = replace(pair(), reasons=(LONG, *pair().reasons))
    for text in (comparison_text(found), bisection_text(Bisection(found))):
        assert all(len(line) <= WIDTH for line in text.splitlines()), text
        assert LONG in " ".join(text.split()), text


@pytest.mark.parametrize(("verdict", "why"), SAID)
def test_the_line_of_a_verdict_without_a_place_is_never_cut(verdict, why):
    found = pair(verdict, first=None, why=why)
    rows = verdict_rows(found, WIDTH)
    assert all(sum(cell_len(text) for text, _ in row) <= WIDTH for row in rows)
    assert why in comparison_text(found)


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("side", [*SideName, None])
def test_the_line_of_a_verdict_at_a_far_place_is_never_cut(verdict, side):
    cells = pair().cells
    found = replace(pair(verdict), first=(119, "attn_post_norm"), token=131071, channel=262143, side=side,
                    measured=1.234e-5, floor=1e-6, cells=cells)
    rows = ["".join(text for text, _ in row) for row in verdict_rows(found, WIDTH)]
    line = " ".join(rows)
    assert all(cell_len(row) <= WIDTH for row in rows), rows
    assert "119.attn_post_norm" in line and "token 131071 ch 262143" in line, line
    assert side is None or f"side {side}" in line, line


def test_a_card_says_why_it_is_inconclusive_and_what_would_change_it():
    found = pair("INCONCLUSIVE", why=Doubt.UNKNOWN_TYPE, measured=0.9)
    text = "\n".join("".join(part for part, _ in row) for row in pair_card(found, WIDTH))
    assert Doubt.UNKNOWN_TYPE in text and "noise floor" not in text and "a weight type whose rounding" in text
