"""The command completion: print what makes a shell complete commands, options and their values.

The scripts hold the words themselves, from the commands' own tables: no process starts at a press of Tab.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping

from apr_tui.cli.commands import COMMANDS
from apr_tui.cli.papers.usage import Word, usage_of
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser


class Arguments(Basic):
    """Arguments of completion."""

    SHELL: str


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("SHELL", choices=tuple(SHELLS), help="whose completion")


def run(arguments: Arguments) -> int:
    """Print the script and return the exit code."""
    sys.stdout.write(SHELLS[arguments.SHELL]({name: usage_of(name or None) for name in ("", *COMMANDS)}))
    return 0


Words = Mapping[str, Iterable[Word]]  # of each command; "" is the console


def bash(words: Words) -> str:
    """A function for complete -F: values behind an option that has some, options behind a dash, else files."""
    options = {name: " ".join(f for w in row for f in w.flags) for name, row in words.items()}
    places = {name: " ".join(o for w in row if not w.flags for o in w.offered) for name, row in words.items()}
    values = sorted({(w.flags[0], " ".join(w.offered)) for row in words.values() for w in row if w.flags and w.offered})
    paths = sorted({f for row in words.values() for w in row if w.is_path for f in w.flags})
    free = sorted({f for row in words.values() for w in row if w.takes and not w.offered for f in w.flags} - set(paths))
    return "\n".join([
        "# bash completion of apr-tui", "_apr_tui() {",
        "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' options='' places=''",
        "  COMPREPLY=()",
        f"  case ${{COMP_WORDS[1]}} in {'|'.join(COMMANDS)}) ",
        "    [ $COMP_CWORD -gt 1 ] && command=${COMP_WORDS[1]};; esac",
        "  case $prev in",
        *(f"    {flag}) COMPREPLY=($(compgen -W '{offered}' -- \"$cur\")); return;;" for flag, offered in values),
        f"    {'|'.join(paths)}) return;;", f"    {'|'.join(free)}) compopt +o default; return;;", "  esac",
        "  case $command in",
        *(f"    '{name}') options='{options[name]}' places='{places[name]}';;" for name in words), "  esac",
        "  case $cur in", "    -*) COMPREPLY=($(compgen -W \"$options\" -- \"$cur\")); return;;", "  esac",
        f"  [ $COMP_CWORD -eq 1 ] && places='{' '.join(COMMANDS)}'",
        "  COMPREPLY=($(compgen -W \"$places\" -- \"$cur\"))", "}",
        "complete -o default -F _apr_tui apr-tui", ""])


def zsh(words: Words) -> str:
    """A function of the new completion system: commands or files first, then each command's _arguments."""
    load = 'if [ "$funcstack[1]" = _apr-tui ]; then _apr_tui "$@"; else compdef _apr_tui apr-tui; fi'
    lines = ["#compdef apr-tui", "_apr_tui() {", "  local -a commands", "  commands=(",
             *(f"    {_quoted(f'{name}:{about}')}" for name, about in COMMANDS.items()), "  )",
             "  if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then", "    _describe command commands", "    _files",
             "    return", "  fi", "  local command=$words[2]", "  case $command in"]
    for name, row in words.items():
        if name:
            lines += [f"    {name})", "      shift words; (( CURRENT-- ))", f"      _arguments {_zsh_words(row)};;"]
    return "\n".join([*lines, f"    *) _arguments {_zsh_words(words[''])};;", "  esac", "}",
                      load, ""])


def _zsh_words(row: Iterable[Word]) -> str:
    found = []
    for word in row:
        about = _plain(word.about)
        action = f"({' '.join(word.offered)})" if word.offered else "_files" if word.is_path else " "
        if not word.flags:
            found.append(_quoted(f"::{word.name}:{action}"))
        for flag in word.flags:
            value = f":{word.name}:{action}" if word.takes else ""
            found.append(_quoted(f"{flag}[{about}]{value}"))
    return " \\\n        ".join(found)


def fish(words: Words) -> str:
    """A complete line for each command, option and value."""
    lines = ["# fish completion of apr-tui"]
    lines += [f"complete -c apr-tui -n __fish_use_subcommand -a {name} -d {_quoted(about)}"
              for name, about in COMMANDS.items()]
    for name, row in words.items():
        when = f"'__fish_seen_subcommand_from {name}'" if name else "__fish_use_subcommand"
        for word in row:
            told = f" -x -a {_quoted(' '.join(word.offered))}" if word.offered else " -r" if word.is_path else (
                " -x" if word.takes else "")
            if word.flags:
                names = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in word.flags)
                lines.append(f"complete -c apr-tui -n {when} {names}{told} -d {_quoted(word.about)}")
            elif word.offered:
                lines.append(f"complete -c apr-tui -n {when} -f -a {_quoted(' '.join(word.offered))}")
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Text that ends no bracket and no field of zsh's _arguments."""
    return text.translate(str.maketrans("[]:", "(),"))


def _quoted(text: str) -> str:
    """One word of any of the shells, by quotes in which only the quote itself is special."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: dict[str, Callable[[Words], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
