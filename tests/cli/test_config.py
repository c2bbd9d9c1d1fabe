"""The user's config.toml gives defaults, a command line's words come first, and a bad file is said, not obeyed."""

from __future__ import annotations

import os

import pytest

from apr_tui.cli.commands import read_arguments, read_console
from apr_tui.cli.launch import ConsoleArguments, request_of
from apr_tui.cli.main import main
from apr_tui.config import Config, read_config
from core.system.errors import UsageError


@pytest.fixture
def settle(tmp_path, monkeypatch):
    """Write the user's config.toml."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "apr-tui").mkdir()

    def write(text: str | bytes):
        path = tmp_path / "apr-tui" / "config.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


ALL = 'theme = "light"\nthreshold = 8\nprompt = "a\\nb"\nchat = true\nmouse = false\n'


def test_settings_are_the_defaults_of_commands_and_console(settle):
    settle(ALL)
    assert read_config() == Config("light", 8.0, "a\nb", True, False)
    asked = read_arguments("trace", ["m.gguf"])
    assert (asked.prompt, asked.threshold, asked.chat) == ("a\nb", 8.0, True)
    assert asked.repeat == "apr-tui trace m.gguf --prompt $'a\\x0ab' --chat --threshold 8", "a report says it all"
    request = request_of(read_console(["m.gguf"], ConsoleArguments()))
    assert (request.theme, request.options.threshold, request.prompt.text) == ("light", 8.0, "a\nb")
    assert read_arguments("audit", ["m.gguf"]).repeat == "apr-tui audit m.gguf"


def test_a_command_lines_words_come_first(settle, tmp_path):
    settle(ALL)
    asked = read_arguments("check", ["m.gguf", "--threshold", "4", "--no-chat", "--prompt", "x"])
    assert (asked.threshold, asked.chat, asked.prompt) == (4.0, False, "x")
    asked = read_arguments("check", ["m.gguf", "--tokens", "1,2"])
    assert (asked.prompt, asked.chat, asked.tokens) == (None, False, (1, 2)), "what is fed is said"
    assert read_arguments("check", ["m.gguf", "--prompts", "p"]).prompt is None
    (tmp_path / "manifest.json").touch()
    asked = read_arguments("compare", ["m.gguf", str(tmp_path)])
    assert (asked.prompt, asked.chat, asked.threshold) == (None, False, 8.0), "a bundle has its tokens"


def test_without_a_file_nothing_is_settled(settle):
    assert read_config() == Config() and read_arguments("trace", ["m"]).repeat == "apr-tui trace m"


@pytest.mark.parametrize("text, said", [
    ("thresold = 3", "Did you mean threshold?"), ("x = 1", "which is none of theme, threshold"),
    ('theme = "pink"', "theme: 'pink': one of auto, dark"), ("theme = 1", "a text in quotes"),
    ("threshold = 0.5", "a number above 1"), ("threshold = nan", "a number above 1"), ("threshold = true", "above 1"),
    (f"threshold = 0x1{'0' * 4000}", "too large"), (f"threshold = {'9' * 5000}", "is no TOML"),
    ("chat = 1", "true or false"), ("mouse = \"yes\"", "true or false"), ("= 3", "is no TOML"),
    (f"x = {'[' * 5000}", "is no TOML"), (b"prompt = '\xff'", "is not UTF-8"), (b"#" * (1 << 21), "at most")])
def test_a_bad_file_is_said_and_exits_2(settle, capsys, text, said):
    path = settle(text)
    assert main(["trace", "m.gguf"]) == 2
    told = capsys.readouterr().err
    assert said in told and str(path) in told and "Traceback" not in told


def test_the_doctor_shows_the_settings_or_what_is_wrong_with_them(settle, capsys):
    settle(ALL)
    assert main(["doctor"]) == 0 and "threshold 8.0" in capsys.readouterr().out
    path = settle("= 3")
    assert main(["doctor"]) == 0 and f"{path} is no TOML" in capsys.readouterr().out


def test_a_file_that_is_none_is_refused(settle, tmp_path):
    os.mkfifo(tmp_path / "apr-tui" / "config.toml")
    with pytest.raises(UsageError, match="a regular file was needed"):
        read_config()


def test_help_and_a_wrong_word_come_before_a_bad_file(settle, capsys):
    settle("= 3")
    with pytest.raises(SystemExit):
        main(["trace", "--help"])
    assert main(["--version"]) == 0
    assert main(["trace", "m", "--no-such"]) == 2 and "--no-such" in capsys.readouterr().err
    assert main(["audit", "nothing.gguf"]) == 3, "what takes none of it does not read it"
