"""What README shows is so: its commands parse, its CI steps and settings are taken, its eleven keys find the bug."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from apr_tui.cli.commands import COMMANDS, read_arguments
from apr_tui.cli.papers.guide import HAVE
from apr_tui.config import KEYS
from core import session

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def test_every_command_of_a_shell_block_or_a_ci_step_is_taken():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += [step["run"] for block in blocks("yaml") for job in yaml.safe_load(block)["jobs"].values()
              for step in job["steps"] if "run" in step]
    said = [part for line in lines for part in re.split(r"&&|#", line) if part.strip().startswith("apr-tui ")]
    named = [shlex.split(part)[1:] for part in said]
    assert len(named) > 6
    for name, *words in named:
        if name in COMMANDS:
            read_arguments(name, words)


def test_the_settings_are_those_that_are_read():
    block, = blocks("toml")
    told = tomllib.loads(block)
    assert set(told) == set(KEYS)
    for key, value in told.items():
        KEYS[key](value)


def test_which_files_you_have_is_what_the_guide_says():
    assert all(f"| {have} | {ask} |" in README for have, ask in HAVE)


def test_the_picture_is_drawn_and_small_and_fetches_nothing():
    name = re.search(r"!\[.*?\]\((evidence/\w+\.svg)\)", README)[1]
    picture = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    assert len(picture) < 60_000 and "ffn_" in picture and "spike" in picture and "@font-face" not in picture


@pytest.mark.slow
async def test_eleven_keys_find_the_planted_bug(tmp_path, monkeypatch):
    from apr_tui.app import Console
    from apr_tui.request import Request
    from tests.support.fake_session import text_of, until

    section = README.partition("## Find a planted bug in 11 keys")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z ]+) \| (?!what)", section, re.MULTILINE)
    keys = [{"esc": "escape"}.get(key, key) for row in rows for key in row.split() if row != "keys"]
    assert len(keys) == 11
    fault = re.search(r"--fault (\S+)", section)[1]
    _, bad = session.write_demo(tmp_path / "pair", fault=fault, force=False)
    monkeypatch.chdir(tmp_path)
    app, seen = Console(Request(path=bad), session), ""
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.worker.serial > 0 and app.owner is None, 120)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.2)
            await until(pilot, lambda: app.owner is None, 120)
            seen += text_of(app)
        await until(pilot, lambda: list(tmp_path.glob("evidence/*/verdict.json")), 60)
    assert "H2  first 2.qkv" in seen and "rows 0..63 and 64..127 exchanged" in seen and "downstream" in seen
