"""Check and bisect in the console: the grid of local errors, the verdict's card, the layers, the ladder of grafts."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.widgets import Input

from apr_tui.cli.commands import command_parser
from apr_tui.options import OPTIONS
from apr_tui.view_models.check import CHECK_METRICS, CheckView
from core.proof.verdict import Bisection, Verdict
from core.system.errors import UsageError
from core.trace.measures import Difference, LocalError
from tests.support.fake_checks import BAD, FakeCheckSession, bisection, check_of, shallow, shallow_pair
from tests.support.fake_session import (
    ESCAPE,
    assert_screen,
    console,
    is_clean,
    lines_of,
    request_of,
    styles_of,
    text_of,
    until,
)
from tests.support.traces import token_stats


async def checked(app, pilot):
    """Press x and wait for the verdict."""
    await pilot.press("x")
    await until(pilot, lambda: app.screen.kind == "check" and app.owner is None)


async def bisected(app, pilot):
    """Press g, wait for the verdict, press b and wait again."""
    await pilot.press("g")
    await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
    await pilot.press("b")
    await until(pilot, lambda: app.owner is None and app.screen.bisection is not None)


# the check


async def test_x_checks_the_open_file_and_names_the_bad_stage(monkeypatch):
    fake = FakeCheckSession(checked=check_of(shallow(), {(5, "ffn_silu"): BAD[5, "ffn_silu"]}))
    async with console(monkeypatch, fake, plant="gelu@5.ffn_silu") as (app, pilot):
        await checked(app, pilot)
        call = fake.calls[-1]
        assert (call[0], call[1].path, call[1].plant) == ("check", Path("tiny.gguf"), "gelu@5.ffn_silu")
        assert_screen(app, "check")
        assert app.screen.grid.place == (5, "ffn_silu"), "the cursor stands at the bad stage"
        assert styles_of(app, "X FAIL 5.ffn_silu") == {"#d75f00"}


async def test_the_errors_fill_the_grid_while_the_check_runs(monkeypatch):
    fake = FakeCheckSession()
    async with console(monkeypatch, fake) as (app, pilot):
        fake.stop_at = (6, "qkv")
        await pilot.press("x")
        await until(pilot, lambda: (6, "attn_norm") in getattr(app.screen.view, "errors", ()))
        monkeypatch.setattr(app, "busy_seconds", lambda: 2.0)
        app.screen.show_all()
        await pilot.pause()
        assert_screen(app, "check_running")
        assert app.screen.view.cell(6, "qkv") == ("?", "?") and app.screen.view.mark((5, "ffn_silu")) == "X"
        assert app.screen.grid.place == (6, "attn_norm"), "the cursor follows what was judged"


async def test_a_check_that_passes_says_so_and_shows_the_stage_nearest_to_its_limit(monkeypatch):
    near = {(9, "ffn_up"): LocalError(4e-12, 1e-15, 2, 8)}
    async with console(monkeypatch, FakeCheckSession(checked=check_of(shallow(), near))) as (app, pilot):
        await checked(app, pilot)
        assert ". PASS each of" in text_of(app) and "X" not in text_of(app)
        assert app.screen.grid.place == (9, "ffn_up")
        await pilot.press("n")
        assert "no stage is bad" in text_of(app)
        await pilot.press("v")
        await pilot.pause()
        assert "9.ffn_up against float64" in text_of(app) and "the nearest stands at 40.000" in text_of(app)


async def test_n_walks_the_bad_stages_and_brings_the_detail_stages_into_view(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await checked(app, pilot)
        assert "bad stage 1 of 2" in text_of(app)
        assert "q_rope" in app.screen.grid.columns, "a bad detail stage would else be out of sight"
        await pilot.press("n")
        assert app.screen.grid.place == (7, "q_rope") and "bad stage 2 of 2" in text_of(app)
        assert "X FAIL 7.q_rope" in text_of(app)
        await pilot.press("n")
        assert app.screen.grid.place == (5, "ffn_silu"), "after the last comes the first"
        await pilot.press("d")
        assert app.screen.grid.place == (5, "ffn_silu") and "q_rope" not in app.screen.grid.columns


async def test_only_what_was_not_judged_is_said_to_be_so_at_each_bad_stage(monkeypatch):
    check = check_of(shallow())
    some = replace(check, errors={p: e for p, e in check.errors.items() if p[0] != 9})
    left = len(check.errors) - len(some.errors)
    for found, wanted in ((check, None), (some, f"{left} stages could not be judged")):
        async with console(monkeypatch, FakeCheckSession(checked=found)) as (app, pilot):
            await checked(app, pilot)
            for _ in BAD:
                assert ("could not be judged" in text_of(app)) == (wanted is not None), text_of(app)
                assert wanted is None or wanted in text_of(app), text_of(app)
                await pilot.press("n")


async def test_a_bad_stage_of_the_whole_model_is_named_though_it_has_no_cell(monkeypatch):
    bad = {(None, "logits"): LocalError(1.5, 1e-14, 6, 3)}
    async with console(monkeypatch, FakeCheckSession(checked=check_of(shallow(), bad))) as (app, pilot):
        await checked(app, pilot)
        assert "X FAIL logits is not what float64 makes" in text_of(app)


async def test_each_metric_of_a_check_shows_over_the_same_grid(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await checked(app, pilot)
        shown = {}
        for metric in CHECK_METRICS:
            assert app.screen.view.metric == metric and metric in lines_of(app)[0]
            shown[metric] = app.screen.view.cell(5, "ffn_silu")[0]
            await pilot.press("m")
        assert shown == {"nmse": "0.0356", "sqnr_db": "14.486", "floor": "2e-15", "multiple": "3.6e11"}


async def test_v_shows_the_card_with_what_would_change_the_verdict(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await checked(app, pilot)
        await pilot.press("v")
        await pilot.pause()
        assert_screen(app, "check_card")
        assert "an NMSE of at most" in text_of(app) and "5.ffn_silu" in text_of(app), "what would make it PASS"


async def test_enter_shows_the_local_errors_of_the_layer(monkeypatch):
    fake = FakeCheckSession(checked=check_of(shallow(), {(5, "ffn_silu"): BAD[5, "ffn_silu"]}))
    async with console(monkeypatch, fake) as (app, pilot):
        await checked(app, pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert_screen(app, "checked_layer")
        await pilot.press("d", "up", "up", "l")
        await pilot.pause()
        assert app.screen.place == (6, "ffn_gate") and " attn_mix " in text_of(app)
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen.grid.place == (6, "ffn_gate"), "the grid comes along"


async def test_a_stage_that_cannot_be_judged_is_not_shown_as_0():
    lost = token_stats(np.full((7, 64), np.nan))
    trace = replace(shallow(), cells={**shallow().cells, (9, "qkv"): lost})
    view = CheckView()
    check = check_of(trace, {(8, "qkv"): LocalError(0.0, 0.0, 0, 0)})
    view.set_result(replace(check, errors={p: e for p, e in check.errors.items() if p != (9, "qkv")}))
    assert view.cell(9, "qkv") == ("?", "?"), "every token of it is NaN"
    assert view.cell(8, "qkv") == ("0", "."), "an exact stage is"


async def test_e_exports_the_check_and_asks_before_it_overwrites(monkeypatch, tmp_path):
    fake = FakeCheckSession()
    async with console(monkeypatch, fake, tokens=(1, 2), compute="q8", generate=3) as (app, pilot):
        await checked(app, pilot)
        await pilot.press("c", "e")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        assert app.clipboard == "apr-tui check tiny.gguf --tokens 1,2 --compute q8 --generate 3"
        assert fake.calls[-1][3] == 3, "generated positions are checked too"
        assert app.screen.query_one(Input).value == "evidence/tiny-0123abcd-check"
        app.screen.query_one(Input).value = str(tmp_path)
        await pilot.press("enter")
        await until(pilot, lambda: "Overwrite it?" in " ".join(text_of(app).split()))
        await pilot.press("y")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export_check")
        assert fake.calls[-1][1:] == (tmp_path, True, app.clipboard)


async def test_a_bundle_is_not_checked_here_and_the_command_is_named(monkeypatch):
    async with console(monkeypatch, FakeCheckSession(), path=None, bundle=Path("bundle")) as (app, pilot):
        await pilot.press("x")
        await until(pilot, lambda: "bundle is checked" in text_of(app))
        told = " ".join(lines_of(app)).replace("  ", " ")
        assert app.screen.kind == "grid" and "apr-tui check bundle --model FILE" in told


async def test_escape_cancels_a_check_then_goes_back(monkeypatch):
    fake = FakeCheckSession()
    async with console(monkeypatch, fake) as (app, pilot):
        fake.stop_at = (6, "qkv")
        await pilot.press("x")
        await until(pilot, lambda: (6, "attn_norm") in getattr(app.screen.view, "errors", ()))
        await pilot.press("v")
        assert "There is no verdict yet" in text_of(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.owner is None)
        assert "cancelled: no verdict" in text_of(app)
        await pilot.press("escape", "escape")
        await pilot.pause()
        assert app.screen.kind == "grid" and app.screen.traced is not None


@pytest.mark.parametrize(("error", "said"), [
    (UsageError("the prompt is empty"), "X the prompt is empty"),
    (PermissionError(13, "Permission denied", "tiny.gguf"), "X tiny.gguf could not be read: Permission denied"),
    (OSError("libcuda.so.1: cannot open shared object file"), "X the device failed: libcuda.so.1")])
async def test_a_check_that_fails_to_run_is_told_and_the_console_lives_on(monkeypatch, error, said):
    fake = FakeCheckSession()
    monkeypatch.setattr(fake, "check", lambda *a, **k: (_ for _ in ()).throw(error))
    async with console(monkeypatch, fake) as (app, pilot):
        await checked(app, pilot)
        assert said in text_of(app)


# the bisection


async def test_b_bisects_and_ends_in_the_sentence(monkeypatch):
    fake = FakeCheckSession(hold="halving layers 5 to 7")
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
        monkeypatch.setattr(app, "busy_seconds", lambda: 2.0 if app.owner else None)
        await pilot.press("b")
        await until(pilot, lambda: "halving layers 5 to 7" in text_of(app))
        fake.go.set()
        await until(pilot, lambda: app.owner is None)
        assert (fake.calls[-1][0], fake.calls[-1][2].path) == ("bisect", Path("tiny.apr"))
        assert_screen(app, "bisect")


async def test_b_again_does_not_start_a_bisection_anew_and_an_export_runs_beside_it(monkeypatch, tmp_path):
    fake = FakeCheckSession(hold="halving layers 5 to 7")
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
        await pilot.press("b")
        await until(pilot, lambda: fake.calls[-1][0] == "bisect")
        serial = app.worker.serial
        await pilot.press("b")
        await pilot.pause()
        assert app.worker.serial == serial and "It bisects already" in text_of(app)
        await pilot.press("e")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        app.screen.query_one(Input).value = str(tmp_path / "new")
        await pilot.press("enter")
        await until(pilot, lambda: "written:" in text_of(app))
        assert app.job == "bisect" and app.worker.serial == serial, "it goes on"
        fake.go.set()
        await until(pilot, lambda: app.owner is None)
        assert app.screen.bisection is not None


async def test_b_again_shows_the_ladder_as_bars(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await bisected(app, pilot)
        await pilot.press("b")
        await pilot.pause()
        assert_screen(app, "ladder")
        row = next(line for line in lines_of(app) if " 5.ffn_out  " in line)
        assert row.endswith("100% ██████████ 0 <"), "the rung that brings back most is marked"
        assert text_of(app).count(" <") == 1


async def test_the_ladder_is_exported_with_the_reproducer_after_asking(monkeypatch, tmp_path):
    fake = FakeCheckSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await bisected(app, pilot)
        await pilot.press("b")
        await until(pilot, lambda: app.screen.kind == "ladder")
        await pilot.press("c", "e")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        assert app.clipboard == "apr-tui bisect tiny.gguf tiny.apr"
        assert app.screen.query_one(Input).value == "evidence/tiny-0123abcd-bisect"
        app.screen.query_one(Input).value = str(tmp_path)
        await pilot.press("enter")
        await until(pilot, lambda: "Overwrite it?" in " ".join(text_of(app).split()))
        await pilot.press("n")
        await until(pilot, lambda: "nothing was written" in text_of(app))
        assert fake.calls[-1][0] == "bisect"
        await pilot.press("e")
        await until(pilot, lambda: bool(app.screen.query(Input)))
        app.screen.query_one(Input).value = str(tmp_path / "new")
        await pilot.press("enter")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export_bisection")
        assert fake.calls[-1][1:] == (tmp_path / "new", False, app.clipboard)
        await until(pilot, lambda: "written:" in text_of(app) and str(tmp_path)[:20] in text_of(app))


async def test_enter_shows_local_and_inherited_error_floor_and_side_of_each_stage(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await bisected(app, pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert_screen(app, "pair_layer")
        await pilot.press("down")
        await pilot.pause()
        row = next(line for line in lines_of(app) if line.startswith(" output"))
        assert row.endswith("downstream") and app.screen.place == (5, "output")


async def test_where_nothing_differs_there_is_no_ladder(monkeypatch):
    found = replace(shallow_pair(), verdict=Verdict.AGREE, first=None, side=None, error=None)
    async with console(monkeypatch, FakeCheckSession(bisected=Bisection(found))) as (app, pilot):
        await bisected(app, pilot)
        assert ". AGREE: no cell differs" in text_of(app) and "ladder" not in text_of(app)
        await pilot.press("b")
        assert "there is no graft to try" in text_of(app) and app.screen.kind == "comparison"


async def test_a_cause_outside_the_layers_is_said(monkeypatch):
    async with console(monkeypatch, FakeCheckSession(bisected=bisection(None))) as (app, pilot):
        await bisected(app, pilot)
        await pilot.press("b")
        await pilot.pause()
        assert "before the layers or after them" in text_of(app).replace("\n ", " ") and "final_norm" in text_of(app)


async def test_a_bundle_is_not_bisected(monkeypatch):
    fake = FakeCheckSession(sibling_path=Path("bundle"))
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
        await pilot.press("b")
        assert "A bundle cannot be run with a graft" in text_of(app) and fake.calls[-1][0] == "compare"


async def test_escape_cancels_a_bisection_and_the_comparison_stands(monkeypatch):
    fake = FakeCheckSession(hold="halving layers 0 to 9")
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: app.screen.kind == "comparison" and app.owner is None)
        await pilot.press("b")
        await until(pilot, lambda: fake.calls[-1][0] == "bisect")
        await pilot.press("escape")
        await until(pilot, lambda: app.owner is None)
        assert "bisection cancelled" in text_of(app) and app.screen.comparison is not None
        await pilot.press("c")
        assert app.clipboard == "apr-tui compare tiny.gguf tiny.apr"


async def test_the_card_of_a_comparison_says_what_would_change_it(monkeypatch):
    async with console(monkeypatch, FakeCheckSession()) as (app, pilot):
        await bisected(app, pilot)
        await pilot.press("v")
        await pilot.pause()
        assert_screen(app, "pair_card")
        assert "a distance of at most 2.0e-5 there is INCONCLUSIVE" in text_of(app), "10 x the floor of 2e-6"


# every screen of them


@pytest.mark.parametrize(("size", "plain"), [((60, 15), True), ((200, 40), False)])
async def test_the_screens_stand_without_colour_in_ascii_and_at_other_sizes(monkeypatch, size, plain):
    async with console(monkeypatch, FakeCheckSession(), size, ascii_only=plain, no_color=plain) as (app, pilot):
        for keys in ("x", "enter", "enter", "escape escape v", "escape escape g", "b", "b", "escape enter", "escape v"):
            await pilot.press(*keys.split())
            await until(pilot, lambda: app.owner is None)
            text = text_of(app)
            assert text.strip() and (text.isascii() or not plain), (keys, text)
            assert all(strip.cell_length == size[0] for strip in app.screen._compositor.render_strips())


async def test_what_files_and_engines_say_reaches_no_page_raw(monkeypatch):
    trace = replace(shallow(), planted=ESCAPE, name=ESCAPE)
    bad = {(5, "ffn_silu"): replace(BAD[5, "ffn_silu"], guess=ESCAPE, span=(ESCAPE,))}
    fake = FakeCheckSession(trace, checked=check_of(trace, bad))
    found = fake.bisected.comparison
    hostile = replace(found, a=trace, b=trace, error=replace(found.error, guess=ESCAPE), reasons=(ESCAPE,))
    fake.comparison, fake.bisected = hostile, replace(fake.bisected, comparison=hostile)
    async with console(monkeypatch, fake, path=Path(f"m{ESCAPE}.gguf")) as (app, pilot):
        for keys in ("x", "c", "enter", "enter", "escape escape v", "escape escape escape g", "b", "b", "c",
                     "escape enter", "enter", "escape escape v"):
            await pilot.press(*keys.split())
            await until(pilot, lambda: app.owner is None)
            assert is_clean(text_of(app)), (keys, text_of(app))


def test_a_copied_command_has_only_options_that_its_verb_takes():
    request = request_of(
        Path("m.gguf"), plant="nan@3.qkv", generate=4, layers=(0, 2), scope="rest", threshold=5.0, chat=True)
    for verb, n_path in {"trace": 1, "check": 1, "compare": 2, "bisect": 2}.items():
        words = shlex.split(request.command(verb, *[Path("m.gguf")] * n_path, scope="rest"))
        options = command_parser(verb).parse_args(words[2:])
        assert options.plant == "nan@3.qkv" and options.scope == "rest", verb
        if verb == "trace":
            assert (options.generate, options.layers, options.threshold, options.chat) == (4, (0, 2), 5.0, True)


@pytest.mark.parametrize(("name", "value"), [
    ("--tokens", (3, 17)), ("--layers", (0, 3)), ("--threshold", 2.5), ("--generate", 4), ("--scope", "pos:2")])
def test_an_option_reads_back_what_it_wrote(name, value):
    assert OPTIONS[name].read(OPTIONS[name].write(value)) == value


def test_a_real_check_tells_every_error_while_it_runs(tmp_path):
    from core import session
    from core.trace.events import StageJudged
    from core.trace.request import Prompt, Source
    from tests.support.small_models import write_model

    told = []
    source = Source(write_model(tmp_path / "m.gguf"), plant="negate@1.ffn_silu")
    check = session.check(source, Prompt(tokens=(1, 2, 3)), emit=told.append)
    errors = {event.place: event.error for event in told if isinstance(event, StageJudged)}
    assert errors == check.errors and check.first == (1, "ffn_silu")
    assert isinstance(errors[1, "ffn_silu"], LocalError) and not isinstance(errors[1, "ffn_silu"], Difference)
