"""What a person reaches by a key: palette, help of this screen, leaving, chat, mouse, a layer's views, verdicts."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from apr_tui.keys import CHECK_KEYS, GRID_KEYS, LAYER_KEYS, PAIR_KEYS, commands_of, help_lines, hint_spans
from tests.support.fake_session import FakeSession, console, pair, text_of, until


def kind_of(app):
    return getattr(app.screen, "kind", "")


async def test_the_palette_finds_an_action_by_its_words_and_takes_it(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("ctrl+p")
        await pilot.pause()
        app.screen.query_one(Input).value = "metric"
        await pilot.pause()
        assert "next metric  [m]" in text_of(app)
        await pilot.press("enter")
        await until(pilot, lambda: kind_of(app) == GRID_KEYS and app.screen.view.metric != "std")


async def test_the_palette_asks_did_you_mean_and_stays(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("colon")
        await pilot.pause()
        app.screen.query_one(Input).value = "exprt"
        await pilot.press("enter")
        await pilot.pause()
        assert "Did you mean export" in text_of(app) or "Did you mean evidence" in text_of(app), text_of(app)
        await pilot.press("escape")
        await until(pilot, lambda: kind_of(app) == GRID_KEYS)


def test_every_act_of_a_screen_is_in_its_palette_once():
    for screen in (GRID_KEYS, LAYER_KEYS, PAIR_KEYS, CHECK_KEYS):
        actions = list(commands_of(screen).values())
        assert "help" in actions and "quit" in actions and len(set(actions)) == len(actions), screen
        assert not {"move(-1, 0)", "page(1)"} & set(actions)


def test_help_begins_with_the_keys_of_the_screen_it_was_asked_from():
    own, others = help_lines(LAYER_KEYS)
    assert any("histogram" in meaning for _, meaning in own) and not any("histogram" in m for _, m in others)
    assert all("(" in meaning for _, meaning in others), "and says where the others work"


async def test_q_leaves_a_page_and_quits_at_the_first_screen(monkeypatch):
    async with console(monkeypatch, FakeSession(comparison=pair())) as (app, pilot):
        await pilot.press("question_mark", "q")
        await until(pilot, lambda: kind_of(app) == GRID_KEYS)
        await pilot.press("g")
        await until(pilot, lambda: kind_of(app) == PAIR_KEYS)
        await pilot.press("q")
        await until(pilot, lambda: kind_of(app) == GRID_KEYS and app.owner is None)
        await pilot.press("q")
        await until(pilot, lambda: app.return_code == 0)


async def test_chat_is_a_key_and_the_title_says_it(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        assert "  raw  " in text_of(app).splitlines()[0]
        await pilot.press("C")
        await until(pilot, lambda: app.owner is None and fake.calls[-1][2].chat)
        assert "  chat  " in text_of(app).splitlines()[0]
        await pilot.press("C")
        await until(pilot, lambda: app.owner is None and not fake.calls[-1][2].chat)


async def test_a_click_puts_the_cursor_and_the_wheel_moves_it(monkeypatch):
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("home")
        await pilot.click("#grid", offset=(5 + 7 * 3 + 2, 2 + 4))
        await pilot.pause()
        assert (app.screen.grid.row, app.screen.grid.columns[app.screen.grid.column]) == (4, "ffn_norm")
        await pilot._post_mouse_events([__import__("textual.events").events.MouseScrollDown], "#grid")
        await pilot.pause()
        assert app.screen.grid.row == 5


def test_the_mouse_is_off_over_ssh(monkeypatch):
    from apr_tui.textual_compat import has_mouse

    for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)
    assert has_mouse()
    monkeypatch.setenv("SSH_TTY", "/dev/pts/3")
    assert not has_mouse()


async def test_the_views_of_a_layer_come_by_key_and_run_it_once(monkeypatch):
    fake = FakeSession()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("enter", "1")
        await until(pilot, lambda: "448 values" in text_of(app))
        await pilot.press("3")
        await pilot.pause()
        text = text_of(app)
        assert "head 0 of 2" in text and 'the last token attends to: 6 "?" 100%' in text
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert 'attends to: 0 "What" 100%' in text_of(app)
        await pilot.press("4")
        await pilot.pause()
        assert "if the model stopped after layer 3" in text_of(app) and '" 4"' in text_of(app)
        await pilot.press("2")
        await pilot.pause()
        assert "rms 0.0310 in layer 3; the others 0.0120 to 0.0440" in text_of(app)
        assert [call for call in fake.calls if call[0] == "layer_view"] == [("layer_view", 3)]
        await pilot.press("1", "right")
        await until(pilot, lambda: ("layer_view", 4) in fake.calls)
        await pilot.press("escape")
        await pilot.pause()
        assert kind_of(app) == LAYER_KEYS and "448 values" not in text_of(app), "escape hides the view first"


async def test_a_view_of_a_bundle_says_that_nothing_is_run(monkeypatch):
    async with console(monkeypatch, FakeSession(), bundle=Path("bundle"), path=None) as (app, pilot):
        await pilot.press("enter", "3")
        await pilot.pause()
        assert "Only a model file whose trace has ended" in text_of(app)


async def test_the_folder_of_a_verdict_opens_on_the_verdict(monkeypatch, tmp_path):
    folder = tmp_path / "verdict"
    (folder / "a").mkdir(parents=True)
    fake = FakeSession(comparison=pair())
    async with console(monkeypatch, fake, bundle=folder, path=None) as (app, pilot):
        await until(pilot, lambda: kind_of(app) == PAIR_KEYS)
        assert "X H2  first 5.ffn_out" in text_of(app) and app.screen.grid.place == (5, "ffn_out")
        assert app.screen.command() == f"apr-tui show {folder} --text"
        assert not [call for call in fake.calls if call[0] in ("trace", "compare")], "nothing was run"
        await pilot.press("q")
        await until(pilot, lambda: kind_of(app) == GRID_KEYS)


def test_the_hints_always_name_help_and_at_the_root_the_way_out():
    for width in (40, 80, 200):
        assert [text.strip() for text, _ in hint_spans(GRID_KEYS, width)][-4:] == ["?", "help", "q", "quit"]
