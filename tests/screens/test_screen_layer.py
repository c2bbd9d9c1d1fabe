"""The drill-down of a layer: all statistics, tokens, channels, weights, why a product grew; and the help page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from apr_tui import keys as table
from apr_tui.keys import ALL, GRID_KEYS, KEYS, LAYER_KEYS, PAIR_KEYS, bindings, help_lines, key_text, keys_of, markdown
from core.model.stages import USUAL
from core.trace.stats import ScopeStats, Stats
from tests.support.fake_session import FakeSession, assert_screen, console, spiky_trace, text_of, until


async def test_enter_opens_the_layer_of_the_spike_and_says_why_it_grew(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("enter")
        await pilot.pause()
        assert_screen(app, "layer")
        text = text_of(app)
        assert "why it grew: ffn_silu 15.000 x ffn_up" in text, "the product's two factors"
        assert "blk.3.ffn_swigl.weight  Q4_K  64x32" in text
        assert "300.00  channel 12  token 0" in text


async def test_d_shows_the_detail_stages(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("enter", "d")
        await pilot.pause()
        for stage in USUAL:
            assert (stage.name in text_of(app)) == (not stage.whole), stage.name


async def test_the_whole_models_stages_stand_at_the_ends(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("enter", "home")
        await pilot.pause()
        assert " embedding " in text_of(app) and " logits " not in text_of(app)
        await pilot.press("end")
        await pilot.pause()
        assert " logits " in text_of(app) and " final_norm " in text_of(app) and " embedding " not in text_of(app)


async def test_arrows_walk_stages_and_layers_and_the_grid_comes_along(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("enter", "down", "l", "escape")
        await pilot.pause()
        assert app.screen.grid.place == (4, "ffn_out")


async def test_enter_in_a_layer_shows_everything_about_the_stage(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("enter", "enter")
        await pilot.pause()
        assert_screen(app, "stage")
        await pilot.press("end")
        await pilot.pause()
        assert '"?"' in text_of(app), "the last token is reachable"
        await pilot.press("escape", "escape")
        assert app.screen.kind == GRID_KEYS


async def test_the_layer_grows_with_the_run_under_it(monkeypatch):
    fake = FakeSession(stop_at=(3, "ffn_out"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (3, "ffn_swigl") in app.screen.view.cells)
        await pilot.press("enter")
        await pilot.pause()
        assert any(line.startswith(" ffn_out    ?") for line in text_of(app).splitlines())
        fake.go.set()
        await until(pilot, lambda: app.owner is None)
        assert any(line.startswith(" ffn_out    X") for line in text_of(app).splitlines())


async def test_a_source_without_tokens_says_so_and_shows_no_zeros(monkeypatch):
    trace = spiky_trace()
    cells = {place: ScopeStats({"all": Stats(std=1.5)}) for place in trace.cells}
    async with console(monkeypatch, FakeSession(replace(trace, cells=cells))) as (app, pilot):
        await pilot.press("enter")
        await pilot.pause()
        row = next(line for line in text_of(app).splitlines() if line.startswith(" qkv"))
        assert "no numbers per token" in text_of(app) and row.split() == ["qkv", "1.5000", *["-"] * 7]


async def test_the_layer_uses_the_room_of_200_columns(monkeypatch):
    async with console(monkeypatch, FakeSession(), (200, 60)) as (app, pilot):
        await pilot.press("enter")
        await pilot.pause()
        assert_screen(app, "layer_wide")
        assert text_of(app).count("channel 12") > 1, "the channels stand beside the tokens, none cut away"


async def test_help_lists_every_key_of_the_table(monkeypatch):
    async with console(monkeypatch, FakeSession(), (100, 90)) as (app, pilot):
        await pilot.press("question_mark")
        await pilot.pause()
        text = text_of(app)
        for keys, meaning in [row for rows in help_lines(GRID_KEYS) for row in rows]:
            assert any(keys in line and meaning[:30] in line for line in text.splitlines()), (keys, meaning)


def test_every_key_has_an_action_and_a_row_in_readmes_table():
    from apr_tui.screens.audit import AuditScreen
    from apr_tui.screens.check import CheckScreen
    from apr_tui.screens.check_layer import CheckLayerScreen
    from apr_tui.screens.compare import CompareScreen
    from apr_tui.screens.damage import DamageScreen
    from apr_tui.screens.ladder import LadderScreen
    from apr_tui.screens.page import PageScreen
    from apr_tui.screens.trace import TraceScreen
    from apr_tui.screens.trace_layer import TraceLayerScreen
    from apr_tui.screens.train import TrainScreen

    classes = {GRID_KEYS: TraceScreen, PAIR_KEYS: CompareScreen, LAYER_KEYS: TraceLayerScreen,
               table.PAGE_KEYS: PageScreen,
               table.CHECK_KEYS: CheckScreen, table.CHECK_LAYER_KEYS: CheckLayerScreen, table.LADDER_KEYS: LadderScreen,
               table.TRAIN_KEYS: TrainScreen, table.AUDIT_KEYS: AuditScreen,
               table.DAMAGE_KEYS: DamageScreen}
    for screen in ALL:
        seen: set[str] = set()
        for key in keys_of(screen):
            name = key.action.partition("(")[0]
            assert hasattr(classes[screen], f"action_{name}"), f"{screen} has no action {name}"
            for one in key.keys.split(","):
                assert one not in seen, f"{one} twice on {screen}"
                seen.add(one)
        assert len(bindings(screen)) == len(keys_of(screen))
    assert markdown() in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for key in KEYS:
        assert f"| {key_text(key)} | {key.help} |" in markdown()
        assert "alt+" not in key.keys and not re.search(r"ctrl\+[^a-z]|ctrl\+[a-z][a-z]", key.keys), (
            "not every terminal sends it")
