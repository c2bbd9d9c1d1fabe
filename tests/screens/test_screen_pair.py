"""The comparison's screen: verdict, reasons, switchable metrics, walking the cells that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from apr_tui.view_models.pair import PAIR_METRICS
from core.proof.verdict import VERDICTS
from core.system.errors import NotComparableError
from tests.support.fake_session import FakeSession, assert_screen, console, pair, styles_of, text_of, until


async def compared(app, pilot):
    """Press g and wait for the verdict."""
    await pilot.press("g")
    await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)


async def test_g_compares_with_the_sibling_and_names_the_first_place(monkeypatch):
    fake = FakeSession(comparison=pair())
    async with console(monkeypatch, fake) as (app, pilot):
        await compared(app, pilot)
        call = fake.calls[-1]
        assert (call[0], call[1].path, call[2].path) == ("compare", Path("tiny.gguf"), Path("tiny.apr"))
        assert_screen(app, "pair")
        assert app.screen.grid.place == (5, "ffn_out"), "the cursor stands at the first place"
        assert styles_of(app, "X H2") == {"#d75f00"}


async def test_each_metric_shows_over_the_same_grid(monkeypatch):
    async with console(monkeypatch, FakeSession(comparison=pair())) as (app, pilot):
        await compared(app, pilot)
        shown = {}
        for metric in PAIR_METRICS:
            assert app.screen.view.metric == metric
            shown[metric] = app.screen.view.cell(5, "ffn_out")[0]
            await pilot.press("m")
        assert shown["rel_l2"] == "0.2500" and shown["local"] == "0.2500" and shown["inherited"] == "0.2000"
        assert shown["A"] != shown["B"] and shown["cosine"] == "0.9700" and shown["max_abs"] == "1.5000"


async def test_enter_in_a_layer_shows_both_sides_of_the_cell(monkeypatch):
    async with console(monkeypatch, FakeSession(comparison=pair())) as (app, pilot):
        await compared(app, pilot)
        await pilot.press("enter", "enter")
        await pilot.pause()
        assert_screen(app, "pair_cell")
        std = next(line.split() for line in text_of(app).splitlines() if line.split()[:1] == ["std"])
        assert float(std[3]) == pytest.approx(float(std[2]) / float(std[1]), abs=1e-4), "B / A of the two beside it"


async def test_n_walks_the_cells_that_differ_in_order_of_computation(monkeypatch):
    async with console(monkeypatch, FakeSession(comparison=pair())) as (app, pilot):
        await compared(app, pilot)
        await pilot.press("n")
        assert app.screen.grid.place == (5, "output")
        assert "5.output X differs, downstream" in text_of(app), "what follows from the first place is called so"
        await pilot.press("p", "p")
        assert app.screen.grid.place == (27, "output"), "before the first comes the last"


@pytest.mark.parametrize("verdict", list(VERDICTS))
async def test_every_verdict_is_told_by_glyph_and_word(monkeypatch, verdict):
    first = None if verdict in ("AGREE", "H1", "NOT_COMPARABLE") else (5, "ffn_out")
    async with console(monkeypatch, FakeSession(comparison=pair(verdict, first=first))) as (app, pilot):
        await compared(app, pilot)
        assert f"{verdict}" in text_of(app) and "blk.5.ffn_down.weight: 1 value of 2048 differs" in text_of(app)
        await pilot.press("v")
        await pilot.pause()
        assert VERDICTS[verdict] in text_of(app) and "H3 was tried" in text_of(app)


async def test_without_a_sibling_the_other_side_is_asked_for(monkeypatch, tmp_path):
    other = tmp_path / "other.gguf"
    other.touch()
    fake = FakeSession(comparison=pair(), sibling_path=None)
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await pilot.pause()
        app.screen.query_one(Input).value = str(other)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
        assert fake.calls[-1][2].path == other


async def test_escape_cancels_a_comparison_then_goes_back(monkeypatch):
    fake = FakeSession(comparison=pair())
    async with console(monkeypatch, fake) as (app, pilot):
        fake.stop_at = (4, "qkv")
        await pilot.press("g")
        await until(pilot, lambda: (4, "attn_norm") in getattr(app.screen.view, "sides", {"A": ()})["A"])
        await pilot.press("escape")
        await until(pilot, lambda: app.owner is None)
        assert "cancelled: no verdict" in text_of(app)
        await pilot.press("escape", "escape")
        await pilot.pause()
        assert app.screen.kind == "grid" and app.screen.traced is not None


async def test_what_cannot_be_compared_is_told_and_the_console_lives_on(monkeypatch):
    fake = FakeSession(comparison=pair())
    monkeypatch.setattr(fake, "compare", lambda *a, **k: (_ for _ in ()).throw(NotComparableError("B has no values")))
    async with console(monkeypatch, fake) as (app, pilot):
        await compared(app, pilot)
        assert "X B has no values" in text_of(app)


async def test_e_exports_the_comparison_and_c_copies_its_command(monkeypatch, tmp_path):
    fake = FakeSession(comparison=pair())
    async with console(monkeypatch, fake) as (app, pilot):
        await compared(app, pilot)
        await pilot.press("c", "e")
        await pilot.pause()
        assert app.clipboard == "apr-tui compare tiny.gguf tiny.apr"
        assert app.screen.query_one(Input).value == "evidence/tiny-0123abcd-pair"
        app.screen.query_one(Input).value = str(tmp_path / "pair")
        await pilot.press("enter")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export_comparison")


async def test_a_planted_side_is_said(monkeypatch):
    from dataclasses import replace

    found = pair()
    planted = replace(found, b=replace(found.b, planted="negate@5.ffn_out"))
    async with console(monkeypatch, FakeSession(comparison=planted)) as (app, pilot):
        await compared(app, pilot)
        assert text_of(app).startswith(" PLANTED negate@5.ffn_out ")
