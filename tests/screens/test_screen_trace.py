"""The main screen: what is on it while a trace runs, when it has ended, and what the keys do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from textual.widgets import Input

from apr_tui.render.status import step_spans
from apr_tui.render.trace import cell_spans
from apr_tui.widgets.grid import HEADER, GridView
from apr_tui.workers.run import Frame, Progress
from core.system.errors import UsageError
from core.trace.stats import ScopeStats
from tests.support.fake_session import (
    FakeSession,
    assert_screen,
    console,
    file_error,
    lines_of,
    spiky_trace,
    styles_of,
    text_of,
    until,
)
from tests.support.traces import token_stats


async def jump(app, pilot, text):
    """Type a place at /."""
    await pilot.press("slash")
    app.screen.query_one(Input).value = text
    await pilot.press("enter")


async def test_the_first_spike_is_marked_and_its_sentence_stands_below(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, _):
        assert_screen(app, "trace")
        assert any(line.startswith(" X 3.ffn_swigl is") for line in lines_of(app))
        assert styles_of(app, "3.ffn_swigl is") == {"#d75f00"}


async def test_the_grid_fills_while_the_run_goes_on(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        monkeypatch.setattr(app, "busy_seconds", lambda: 2.0)
        app.screen.show_all()
        await pilot.pause()
        assert_screen(app, "running")
        assert app.screen.grid.place == (5, "ffn_norm"), "the cursor follows the running stage"


async def test_moving_the_cursor_ends_the_following(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        await pilot.press("k", "h")
        fake.go.set()
        await until(pilot, lambda: app.owner is None)
        assert app.screen.grid.place == (4, "attn_out")


async def test_escape_cancels_the_run_and_says_so(monkeypatch):
    async with console(monkeypatch, FakeSession(stop_at=(5, "ffn_gate")), ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        await pilot.press("escape")
        await until(pilot, lambda: app.owner is None)
        assert "cancelled: the grid is incomplete" in text_of(app)
        assert app.screen.view.cell(5, "ffn_gate") == ("?", "?"), "what was not measured does not turn into absent"


async def test_r_runs_again_after_a_cancel(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        await pilot.press("escape")
        await until(pilot, lambda: app.owner is None)
        fake.stop_at = None
        await pilot.press("r")
        await until(pilot, lambda: app.owner is None)
        assert app.screen.view.cell(27, "output")[1] != "?"


async def test_another_prompt_runs_with_that_prompt(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("i")
        await pilot.pause()
        app.screen.query_one(Input).value = "one\\ntwo"
        await pilot.press("enter")
        await until(pilot, lambda: len(fake.calls) == 2 and app.owner is None)
        assert fake.calls[-1][2].text == "one\ntwo"


async def test_token_ids_are_a_prompt_too(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("i")
        await pilot.pause()
        app.screen.query_one(Input).value = "tokens: 3, 1 2"
        await pilot.press("enter")
        await until(pilot, lambda: len(fake.calls) == 2)
        assert fake.calls[-1][2].tokens == (3, 1, 2)


async def test_n_and_p_walk_the_findings(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        n = len(app.screen.view.findings)
        assert n >= 3
        await pilot.press("n")
        assert app.screen.grid.place == app.screen.view.findings[1].place
        assert f"hint 2 of {n}" in text_of(app)
        await pilot.press("p", "p")
        assert f"hint {n} of {n}" in text_of(app)


async def test_at_scope_rest_the_spike_of_the_first_token_is_gone(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("s", "s", "s")
        await until(pilot, lambda: app.owner is None and app.screen.view.scope == "rest")
        assert "no finding at scope rest" in text_of(app)
        assert app.screen.view.mark((3, "ffn_swigl")) == "."


async def test_after_rest_comes_the_token_of_the_peak(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await jump(app, pilot, "3.ffn_swigl")
        await pilot.press("s", "s", "s", "s")
        assert app.screen.view.scope == "pos:0"
        await pilot.press("s")
        assert app.screen.view.scope == "all"


async def test_m_shows_another_metric_of_the_same_run(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("m")
        assert app.screen.view.metric == "mean" and len(fake.calls) == 1
        assert " mean " in lines_of(app)[0]


async def test_jump_goes_to_a_place_a_layer_and_a_scope(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await jump(app, pilot, "12.qkv")
        assert app.screen.grid.place == (12, "qkv")
        await jump(app, pilot, "20")
        assert app.screen.grid.place == (20, "qkv")
        await jump(app, pilot, "last")
        assert app.screen.view.scope == "last"
        await jump(app, pilot, "99")
        assert "there is no layer 99: the last is 27" in text_of(app)
        for text in ("nonsense", "²", "²:qkv"):
            await jump(app, pilot, text)
            assert f"'{text}' is not a stage" in text_of(app)
        await jump(app, pilot, "9" * 5000)
        assert "'99999999" in text_of(app) and app.screen.grid.place == (27, "qkv")


async def test_an_unreadable_file_is_told_and_the_console_lives_on(monkeypatch):
    fake = FakeSession(fail=file_error())
    async with console(monkeypatch, fake) as (app, pilot):
        assert_screen(app, "error")
        fake.fail = None
        await pilot.press("r")
        await until(pilot, lambda: app.owner is None)
        assert app.screen.traced is not None and "cut short" not in text_of(app)


async def test_export_asks_before_it_overwrites_and_shows_the_path(monkeypatch, tmp_path):
    fake = FakeSession()
    (tmp_path / "there").mkdir()
    async with console(monkeypatch, fake) as (app, pilot):
        async def export_to(folder: Path) -> None:
            await pilot.press("e")
            await pilot.pause()
            assert app.screen.query_one(Input).value
            app.screen.query_one(Input).value = str(folder)
            await pilot.press("enter")
            await pilot.pause()

        await export_to(tmp_path / "new")
        await until(pilot, lambda: app.owner is None)
        assert fake.calls[-1][:3] == ("export", tmp_path / "new", False)
        await until(pilot, lambda: "written:" in text_of(app))  # a long path stands on the next line
        await export_to(tmp_path / "there")
        assert "Overwrite it?" in " ".join(text_of(app).split())
        await pilot.press("n")
        await pilot.pause()
        assert "nothing was written" in text_of(app) and fake.calls[-1][1] == tmp_path / "new"
        await export_to(tmp_path / "there")
        await pilot.press("y")
        await until(pilot, lambda: app.owner is None and fake.calls[-1][1] == tmp_path / "there")
        assert fake.calls[-1][2] is True


async def test_an_export_is_taken_at_the_scope_that_is_shown(monkeypatch, tmp_path):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("s", "e")
        await pilot.pause()
        app.screen.query_one(Input).value = str(tmp_path / "new")
        await pilot.press("enter")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export")
        assert fake.exported_scope == "last" and fake.calls[-1][3].endswith("--scope last")


async def test_an_export_leaves_the_numbers_on_the_screen(monkeypatch, tmp_path):
    fake = FakeSession()
    export = fake.export
    monkeypatch.setattr(fake, "export", lambda *a, **k: (time.sleep(0.5), export(*a, **k))[1])
    async with console(monkeypatch, fake) as (app, pilot):
        before = lines_of(app)[:19]
        await pilot.press("e")
        await pilot.pause()
        app.screen.query_one(Input).value = str(tmp_path / "new")
        await pilot.press("enter")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export")
        assert lines_of(app)[:19] == before and "7 tokens" in text_of(app) and "X spike std" in text_of(app)


async def test_tab_completes_a_path_and_a_bundle_is_not_entered(monkeypatch, tmp_path):
    fake = FakeSession()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "evidence" / "bundle").mkdir(parents=True)
    (tmp_path / "evidence" / "bundle" / "manifest.json").touch()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("f")
        field = app.screen.query_one(Input)
        field.value = f"{tmp_path}/mo"
        await pilot.press("tab")
        assert field.value == f"{tmp_path}/model.gguf"
        field.value = f"{tmp_path}/ev"
        await pilot.press("tab", "tab", "enter")
        await until(pilot, lambda: app.screen.kind == "grid" and app.owner is None)
        assert app.screen.traced.bundle == tmp_path / "evidence" / "bundle"


async def test_a_path_that_nobody_can_have_is_told_and_the_console_lives_on(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("f")
        field = app.screen.query_one(Input)
        for path in ("~nobody-here/mo", "m" * 5000 + "/mo", "a\0b/mo"):
            field.value = path
            await pilot.press("tab")
            assert field.value == path
        field.value = "~nobody-here/m.gguf"
        await pilot.press("enter")
        await pilot.pause()
        assert "X There is no ~nobody-here/m.gguf." in text_of(app), "the question stays, with its reason"
        await pilot.press("escape", "e")
        app.screen.query_one(Input).value = "e" * 5000
        await pilot.press("enter")
        await until(pilot, lambda: app.exports.writing is None and fake.calls[-1][0] == "export")
        assert "written:" in text_of(app)


async def test_token_ids_that_are_no_numbers_are_told(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("i")
        app.screen.query_one(Input).value = "tokens: 3 ²"
        await pilot.press("enter")
        await pilot.pause()
        assert "token ids are whole numbers" in text_of(app)


async def test_c_copies_the_command_that_gives_these_numbers(monkeypatch):
    async with console(monkeypatch, FakeSession(), prompt="it's", threads=2) as (app, pilot):
        await pilot.press("s", "c")
        assert app.clipboard == """apr-tui trace tiny.gguf --prompt 'it'"'"'s' --threads 2 --scope last"""


async def test_the_overview_stands_instead_of_the_grid_where_there_is_no_room(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("o")
        await pilot.pause()
        assert_screen(app, "overview")
        tall = [line.split()[0] for line in lines_of(app) if "█" in line]
        assert tall == ["ffn_swigl", "ffn_out"], "one look finds the stages of the spike"


async def test_at_200_columns_grid_and_overview_stand_side_by_side(monkeypatch):
    async with console(monkeypatch, FakeSession(), (200, 60)) as (app, _):
        assert_screen(app, "wide")
        assert app.screen.grid.size.width + app.screen.overview.size.width == 200, "no column is left empty"


async def test_eighty_layers_scroll_under_the_cursor(monkeypatch):
    async with console(monkeypatch, FakeSession(spiky_trace(80))) as (app, pilot):
        await pilot.press("end")
        await pilot.pause()
        assert_screen(app, "layers80")
        assert app.screen.grid.row == 79 and any(line.split()[:1] == ["79"] for line in lines_of(app))


async def test_nan_is_named_first_and_shown_as_nan_not_as_a_number(monkeypatch):
    trace = spiky_trace()
    array = np.full((7, 64), float("nan"), dtype="float32")
    cells = {**trace.cells, (2, "qkv"): token_stats(array)}
    async with console(monkeypatch, FakeSession(replace(trace, cells=cells))) as (app, _):
        assert_screen(app, "nan")
        assert "2.qkv has 448 NaN" in text_of(app)


async def test_a_terminal_too_small_says_so_and_recovers(monkeypatch):
    async with console(monkeypatch, FakeSession(), (30, 8)) as (app, pilot):
        assert_screen(app, "small")
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        await pilot.pause()
        assert "ffn_" in text_of(app) and "too small" not in text_of(app)


async def test_at_60_x_15_the_grid_follows_the_cursor_sideways(monkeypatch):
    async with console(monkeypatch, FakeSession(), (60, 15)) as (app, pilot):
        await pilot.press("home", *["l"] * 9)
        await pilot.pause()
        assert_screen(app, "narrow")
        assert "output" in text_of(app)


async def test_without_colour_every_state_is_still_told(monkeypatch):
    async with console(monkeypatch, FakeSession(), no_color=True) as (app, pilot):
        await pilot.press("i")
        await pilot.pause()
        await pilot.press("escape", "enter", "escape", "question_mark", "escape", "o", "o")
        await pilot.pause()
        assert "X" in text_of(app)
        for strip in app.screen._compositor.render_strips():
            for segment in strip.apply_filter(app._filters[-1], app.screen.styles.background):
                colour = segment.style.color if segment.style else None
                assert colour is None or colour.is_default, segment


async def test_an_ascii_terminal_gets_ascii_only(monkeypatch):
    async with console(monkeypatch, FakeSession(), (200, 60), ascii_only=True) as (app, pilot):
        assert text_of(app).isascii()
        await pilot.press("enter")
        await pilot.pause()
        assert text_of(app).isascii()


async def test_a_planted_bug_is_said_on_the_screen(monkeypatch):
    fake = FakeSession(spiky_trace(planted="transpose@3.attn_out"))
    async with console(monkeypatch, fake) as (app, pilot):
        assert lines_of(app)[0].startswith(" PLANTED  tiny.gguf") and lines_of(app)[0].endswith("412 MiB")
        await pilot.resize_terminal(120, 30)
        await pilot.pause()
        await pilot.pause()
        assert lines_of(app)[0].startswith(" PLANTED transpose@3.attn_out  tiny.gguf")


async def test_a_bundle_opens_without_a_model(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake, path=None, bundle=Path("some/bundle")) as (app, pilot):
        assert lines_of(app)[0].startswith(" from-bundle") and not fake.calls
        await pilot.press("c")
        assert app.clipboard == "apr-tui show some/bundle --text"
        await pilot.press("s", "c")
        assert app.clipboard == "apr-tui show some/bundle --text --scope last"


async def test_a_source_of_one_scope_is_shown_at_that_scope(monkeypatch):
    trace = spiky_trace()
    cells = {place: ScopeStats({"last": cell.at("last")}) for place, cell in trace.cells.items()}
    last = replace(trace, cells=cells, facts=replace(trace.facts, scopes=("last",)))
    async with console(monkeypatch, FakeSession(last), path=None, bundle=Path("some/bundle")) as (app, pilot):
        assert app.screen.view.scope == "last" and app.screen.view.cell(0, "qkv")[0] != "-"
        await pilot.press("s")
        assert app.screen.view.scope == "last", "there is no other"


async def test_an_internal_error_closes_the_screen_and_is_handed_on(monkeypatch):
    fake = FakeSession(fail=ZeroDivisionError("a bug of ours"))
    try:
        async with console(monkeypatch, fake) as (app, pilot):
            await until(pilot, lambda: app.failure is not None)
    except ZeroDivisionError:
        pass
    assert isinstance(app.failure, ZeroDivisionError)
    assert not app._exit_renderables, "no traceback is left for the terminal"


async def test_a_late_frame_of_a_superseded_run_changes_nothing(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        old = app.screen.progress
        fake.fail = UsageError("no")
        await pilot.press("r")
        await until(pilot, lambda: app.owner is None)
        app.post_message(Progress(old))
        await pilot.pause()
        assert not app.screen.view.cells


async def test_the_end_of_a_superseded_run_does_not_end_the_new_one(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        await pilot.press("r")
        await until(pilot, lambda: len(fake.calls) == 2 and (5, "ffn_norm") in app.screen.view.cells)
        assert app.owner is app.screen and "cancelled" not in text_of(app)


async def test_a_frame_that_was_overtaken_takes_nothing_back(monkeypatch):
    fake = FakeSession(stop_at=(5, "ffn_gate"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        last = app.screen.progress
        app.post_message(Progress(replace(last, number=last.number - 1, cells={"": {}})))
        await pilot.pause()
        assert (5, "ffn_norm") in app.screen.view.cells


async def test_one_more_row_repaints_that_row_only(monkeypatch):
    fake = FakeSession(stop_at=(5, "attn_norm"))
    async with console(monkeypatch, fake, ends=False) as (app, pilot):
        await until(pilot, lambda: (4, "output") in app.screen.view.cells)
        await pilot.press("home")
        await pilot.pause()
        drawn: list[int] = []
        line = GridView.render_line
        monkeypatch.setattr(GridView, "render_line", lambda self, y: drawn.append(y - HEADER) or line(self, y))
        frame_cells = {p: c for p, c in fake.traced.cells.items() if p[0] is not None and p[0] <= 5}
        app.screen.grid.show_rows(app.screen.view.update(frame_cells, 28))
        await pilot.pause()
        assert set(drawn) == {5}, drawn


async def test_a_cells_line_gives_up_a_fact_before_it_cuts_a_channel(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, _):
        place = (3, "ffn_swigl")
        line = {width: "".join(text for text, _ in cell_spans(app.screen.view, place, width)) for width in (120, 60)}
        assert "std " in line[120] and len(line[60]) <= 60, line
        assert line[60].split()[-1] == line[120].split()[-1], "the channel of the peak is whole"


async def test_the_overview_keeps_the_bar_under_the_cursor_and_marks_its_layer_on_the_axis(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("o")
        await pilot.pause()
        reversed_ = [s.text for line in app.screen._compositor.render_strips() for s in line if s.style.reverse]
        assert app.screen.grid.place == (3, "ffn_swigl") and reversed_ == ["3 "], "the axis alone is in reverse"


async def test_ctrl_c_cancels_first_and_leaves_at_once_where_nothing_runs(monkeypatch):
    async with console(monkeypatch, FakeSession(stop_at=(5, "ffn_gate")), ends=False) as (app, pilot):
        await until(pilot, lambda: (5, "ffn_norm") in app.screen.view.cells)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: app.owner is None)
        assert "cancelled: the grid is incomplete" in text_of(app) and app.return_code is None
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.return_code == 130


def test_a_step_says_which_of_how_many_the_layer_and_about_how_long():
    frame = Frame(1, 1, "bisect", "halving layers 0 to 29", n_layer=30, step=(3, 5), reached=11)
    said = "".join(text for text, _ in step_spans(frame, 12.0))
    assert said.startswith("step 3 of 5, layer 12 of 30, about 78 s left"), "12 s for 12 layers: 18 s, then 2 x 30 s"
    assert "about" not in "".join(text for text, _ in step_spans(frame, 0.5)), "too early to say"
