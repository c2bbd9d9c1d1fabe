"""What is asked for stays until it can be had: prompts with their reason, recent files, B, and the trace kept."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from apr_tui import style
from apr_tui.render.pair import verdict_rows
from apr_tui.style import spans_width
from tests.support.fake_session import FakeSession, console, file_error, pair, text_of, until


async def test_enter_takes_the_match_that_is_shown(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").touch()
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        await pilot.press("f")
        app.screen.query_one(Input).value = f"{tmp_path}/mo"
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "kind", "") == "grid" and app.owner is None)
        assert app.screen.request.path == tmp_path / "model.gguf"


async def test_a_source_is_read_as_the_command_line_reads_it(monkeypatch, tmp_path):
    fake, path = FakeSession(), tmp_path / "model.gguf"
    path.touch()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("f")
        app.screen.query_one(Input).value = f"llama.cpp:{path}@threads=1"
        await pilot.press("enter")
        await until(pilot, lambda: fake.calls[-1][1].path == path)
        source = fake.calls[-1][1]
        assert (source.scheme, source.threads) == ("llama.cpp", 1)


async def test_what_was_opened_last_is_listed_and_chosen_by_key(monkeypatch, tmp_path):
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).touch()
    async with console(monkeypatch, FakeSession()) as (app, pilot):
        for name in ("one.gguf", "two.gguf"):
            await pilot.press("f")
            app.screen.query_one(Input).value = f"{tmp_path}/{name}"
            await pilot.press("enter")
            await until(pilot, lambda: getattr(app.screen, "kind", "") == "grid" and app.owner is None)
        await pilot.press("f", "down")
        assert app.screen.query_one(Input).value == f"{tmp_path}/two.gguf", "the newest first"
        await pilot.press("down", "enter")
        await until(pilot, lambda: getattr(app.screen, "kind", "") == "grid" and app.owner is None)
        assert app.screen.request.path == tmp_path / "one.gguf"


async def test_where_a_file_gives_nothing_the_trace_before_it_stands_again(monkeypatch, tmp_path):
    fake, path = FakeSession(), tmp_path / "cut.gguf"
    path.touch()
    async with console(monkeypatch, fake) as (app, pilot):
        before = app.screen.traced
        fake.fail = file_error()
        await pilot.press("f")
        app.screen.query_one(Input).value = str(path)
        await pilot.press("enter")
        await until(pilot, lambda: "cut short" in text_of(app))
        assert app.screen.traced is before and app.screen.request.path == Path("tiny.gguf")
        assert "X spike" in text_of(app)


async def test_another_b_is_asked_for_where_a_sibling_is_there(monkeypatch, tmp_path):
    fake, path = FakeSession(comparison=pair()), tmp_path / "other.gguf"
    path.touch()
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("G")
        await pilot.pause()
        app.screen.query_one(Input).value = f"{path}@compute=q8"
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "kind", "") == "comparison" and app.owner is None)
        a, b = fake.calls[-1][1:3]
        assert (b.path, b.compute, a.compute) == (path, "q8", "f32")


async def test_from_160_columns_b_stands_beside_a(monkeypatch):
    fake = FakeSession(comparison=pair())
    async with console(monkeypatch, fake, (200, 40)) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: getattr(app.screen, "kind", "") == "comparison" and app.owner is None)
        while app.screen.view.metric != "A":
            await pilot.press("m")
        await pilot.pause()
        place = (4, "qkv")
        row = next(line for line in text_of(app).splitlines() if line.split()[:1] == ["4"])
        numbers = [side.cells[place].at("all").std for side in (fake.comparison.a, fake.comparison.b)]
        header = text_of(app).splitlines()[2].split()
        assert header.count("output") == 2, "every stage of both sides is in view"
        assert row.split().count("4") == 2 and all(f"{number:.4f}" in row for number in numbers), row


def test_the_headline_wraps_and_loses_nothing():
    found = pair()
    for width in (40, 60, 80, 200):
        rows = verdict_rows(found, width)
        text = " ".join(" ".join(part for part, _ in row) for row in rows)
        assert all(spans_width(row) <= width for row in rows)
        assert {"H2", "5.ffn_out", "side", "B", "125000", "floor"} <= set(text.split())


def test_a_word_of_thousands_of_characters_is_broken_without_measuring_each_beginning(monkeypatch):
    measured, own = [], style.cell_len
    monkeypatch.setattr(style, "cell_len", lambda text: measured.append(text) or own(text))
    lines = style.wrap("e" * 4000 + "漢" * 500, 80)
    assert "".join(lines) == "e" * 4000 + "漢" * 500 and all(own(line) == 80 for line in lines[:-1])
    assert len(measured) < 20 * len(lines), len(measured)
