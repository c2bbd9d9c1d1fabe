"""Guide, manual page, completion, examples and settings are made from the commands' own tables, and hold."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import pytest

from apr_tui.cli import commands
from apr_tui.cli.commands import COMMANDS, CONSOLE_EXAMPLES, EXAMPLES, command_line, read_arguments
from apr_tui.cli.import_ import FORMS
from apr_tui.cli.main import main
from apr_tui.cli.papers.completion import SHELLS
from apr_tui.cli.papers.guide import ACTS, STEPS, guide_document, guide_page
from apr_tui.cli.papers.man import man_page
from apr_tui.cli.papers.usage import usage_of
from apr_tui.keys import KEYS


def words_of(text: str) -> list[str]:
    """An example's words without what the shell takes away."""
    return shlex.split(text.partition(">")[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_takes_and_that_its_help_shows(name, capsys):
    for example in EXAMPLES[name]:
        assert read_arguments(name, words_of(example.words)).command.startswith(f"apr-tui {name}")
        assert command_line(name, example) in commands.command_parser(name).format_help()


def test_the_consoles_help_has_examples_that_it_takes():
    parser = commands.console_parser()
    for line in CONSOLE_EXAMPLES:
        assert line in parser.format_help()
        parser.parse_args(shlex.split(line)[1:])


def test_every_form_of_import_has_an_example_that_it_takes():
    for made, words, shows in FORMS.values():
        assert made and shows and read_arguments("import", [*words_of(words), "--out", "OUT"]).out.name == "OUT"


def test_the_guide_names_every_command_and_each_of_its_lines_is_taken():
    page = guide_page()
    assert all(f"**{name}**" in page for name in COMMANDS)
    lines = re.findall(r"`apr-tui (.*?)`", page)
    assert len(lines) > 40
    for line in lines:
        name, *words = words_of(line)
        read_arguments(name, words)


def test_every_act_of_the_console_has_a_command_with_a_document():
    acts = {key for keys, _ in ACTS for key in keys.split()}
    jobs = {"pair", "pair_with", "check", "audit", "damage", "bisect", "export", "file", "prompt", "run", "train",
            "chat", "view('histogram')", "view('spread')", "view('attention')", "view('lens')"}
    assert {row.keys for row in KEYS if row.action in jobs} <= acts and jobs <= {row.action for row in KEYS}
    for _, words in ACTS:
        name, *rest = words_of(words)
        assert read_arguments(name, rest).json


def test_the_guides_document_has_every_option_and_exit_code(capsys):
    assert main(["guide", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == guide_document() and [s["command"].split()[1] for s in told["steps"]] == [s.command for s in STEPS]
    for command in told["commands"]:
        flags = {flag for word in command["takes"] for flag in word["flags"]}
        assert flags >= commands.command_parser(command["name"]).taken
    assert set(told["exit_codes"]) == {"0", "1", "2", "3", "4", "5", "6", "7", "70", "130"}


def test_the_manual_page_has_every_command_and_option_and_nothing_that_roff_obeys():
    page = man_page()
    macros = {line.split()[0] for line in page.splitlines() if line[:1] in (".", "'")}
    assert macros <= {".TH", ".SH", ".SS", ".TP", ".B", ".br", ".PP", ".nf", ".fi", ".RS", ".RE"}
    for name in COMMANDS:
        assert f"apr\\-tui {name}".replace("apr\\-", "apr-") in page
        for word in usage_of(name):
            assert word.about and all(flag.replace("-", "\\-") in page for flag in word.flags), word
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=page, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr and "EXIT STATUS" in re.sub(".\b", "", done.stdout)


def completed(line: str, folder) -> set[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    script = (f"{SHELLS['bash']({n: usage_of(n or None) for n in ('', *COMMANDS)})}\n"
              f"compopt() {{ :; }}; COMP_WORDS=({' '.join(f'{w!r}' for w in words)}); COMP_CWORD={len(words) - 1}\n"
              "_apr_tui; printf '%s\\n' \"${COMPREPLY[@]}\"")
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_offers_commands_options_and_values(tmp_path):
    assert completed("apr-tui ch", tmp_path) == {"check"}
    assert completed("apr-tui trace m.gguf --the", tmp_path) == set()
    assert completed("apr-tui trace m.gguf --comp", tmp_path) == {"--compute"}
    assert completed("apr-tui check m.gguf --compute ", tmp_path) == {"f32", "q8", "bf16", "f16"}
    assert completed("apr-tui completion ", tmp_path) == {"bash", "zsh", "fish"}
    assert completed("apr-tui --the", tmp_path) == {"--theme"}
    assert completed("apr-tui trace m.gguf --prompt ", tmp_path) == set()


@pytest.mark.parametrize("shell, check", [("zsh", ["zsh", "-n"]), ("fish", ["fish", "-n"]), ("bash", ["bash", "-n"])])
def test_a_shell_finds_its_completion_well_formed(shell, check, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert all(name in script.read_text() for name in COMMANDS)
    if shutil.which(shell):
        done = subprocess.run([*check, str(script)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("words, meant", [
    (["trcae", "m.gguf"], "apr-tui trace"), (["comapre"], "apr-tui compare"),
    (["trace", "m", "--trheshold", "3"], "--threshold"), (["check", "m", "--promt=x"], "--prompt"),
    (["--them", "dark"], "--theme")])
def test_a_mistyped_word_is_answered_with_the_one_that_was_meant(words, meant, capsys):
    assert main(words) == 2 and f"Did you mean {meant if meant[0] == '-' else f'`{meant}`'}?" in capsys.readouterr().err


def test_a_word_that_is_like_nothing_is_no_command(capsys):
    assert main(["xyzzy", "m"]) == 2 and "is no command and no file" in capsys.readouterr().err
