"""The table of keys; bindings, hints, the help screen and README's table are made from it. It does nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType

GRID_KEYS, LAYER_KEYS, PAIR_KEYS, CHECK_KEYS, CHECK_LAYER_KEYS = "grid", "layer", "comparison", "check", "checked layer"
LADDER_KEYS, PAGE_KEYS, TRAIN_KEYS, AUDIT_KEYS = "ladder", "page", "training", "audit"


@dataclass(frozen=True, slots=True)
class Key:
    """One row: keys that every terminal sends (Textual's names), the action, a word for the hint line, one for help."""

    keys: str
    action: str
    word: str
    help: str
    screens: tuple[str, ...]
    shown: str = ""  # how the keys are written for a person; keys itself where empty


ALL = (GRID_KEYS, LAYER_KEYS, PAIR_KEYS, CHECK_KEYS, CHECK_LAYER_KEYS, LADDER_KEYS, PAGE_KEYS, TRAIN_KEYS,
       AUDIT_KEYS)
MAPS = (GRID_KEYS, PAIR_KEYS, CHECK_KEYS)
LAYERS = (LAYER_KEYS, CHECK_LAYER_KEYS)
SIDEWAYS = (*MAPS, *LAYERS, TRAIN_KEYS)
KEYS = (
    Key("up,k", "move(-1, 0)", "", "one row up", ALL, "up k"),
    Key("down,j", "move(1, 0)", "", "one row down", ALL, "down j"),
    Key("left,h", "move(0, -1)", "", "one stage left; in a layer: the layer before", SIDEWAYS, "left h"),
    Key("right,l", "move(0, 1)", "", "one stage right; in a layer: the layer after", SIDEWAYS, "right l"),
    Key("pageup", "page(-1)", "", "one page up", ALL, "pgup"),
    Key("pagedown,space", "page(1)", "", "one page down", ALL, "pgdn space"),
    Key("home", "end(-1)", "", "to the first layer", ALL),
    Key("end", "end(1)", "", "to the last layer", ALL),
    Key("enter", "open", "open", "open the layer; in a layer: everything about the stage", (*MAPS, *LAYERS)),
    Key("escape", "back", "back", "go back; first cancel what runs", ALL[1:], "esc"),
    Key("escape", "back", "", "cancel the run", (GRID_KEYS,), "esc"),
    Key("g", "pair", "compare", "compare with the same model in the other format", (GRID_KEYS,)),
    Key("G", "pair_with", "", "compare with a file that is asked for", (GRID_KEYS,)),
    Key("x", "check", "check", "check every stage against float64 on its own inputs", (GRID_KEYS,)),
    Key("a", "audit", "", "audit the file by itself: what its bytes and keys prove, hints, facts", (GRID_KEYS,)),
    Key("b", "bisect", "bisect", "prove the cause by grafts; then: their ladder", (PAIR_KEYS,)),
    Key("v", "card", "why", "the card of the verdict: measured, floor, reasons, what would change it",
        (PAIR_KEYS, CHECK_KEYS)),
    Key("s", "scope", "scope", "next scope: all, last, first, rest, the token of the peak", (GRID_KEYS, LAYER_KEYS)),
    Key("n", "finding(1)", "next", "next finding; in a comparison: cell that differs; in a check: bad stage", MAPS),
    Key("p", "finding(-1)", "", "the one before", MAPS),
    Key("i", "prompt", "prompt", "another prompt, and run", (GRID_KEYS,)),
    Key("m", "metric", "metric", "next metric", MAPS),
    Key("s", "scope", "scope", "next scope, of the metrics A, B and ratio", (PAIR_KEYS,)),
    Key("e", "export", "export", "write the evidence to a folder", (*MAPS, LADDER_KEYS)),
    Key("f", "file", "file", "open another file or bundle", (GRID_KEYS,)),
    Key("o", "overview", "overview", "overview strip: stages down, layers across", MAPS),
    Key("slash", "jump", "jump", "jump to a place (3.ffn_swigl, 12) or to a scope (rest, pos:4)", MAPS, "/"),
    Key("r", "run", "run", "run again", MAPS),
    Key("c", "copy", "copy", "copy the command that reproduces this view (OSC 52)",
        (*MAPS, LADDER_KEYS, TRAIN_KEYS, AUDIT_KEYS)),
    Key("d", "detail", "detail", "show or hide the detail stages (q_rope, attn_mix ...)",
        (*LAYERS, PAIR_KEYS, CHECK_KEYS)),
    Key("t", "train", "", "train a model, or follow a run; there: back to the grid, the run goes on",
        (GRID_KEYS, TRAIN_KEYS)),
    Key("enter,T", "trace", "trace", "trace the newest checkpoint; the run goes on", (TRAIN_KEYS,)),
    Key("p", "pause", "pause", "pause the run after the step in flight, or go on", (TRAIN_KEYS,)),
    Key("w", "save", "write", "write a checkpoint after the step in flight", (TRAIN_KEYS,)),
    Key("o", "layers", "layers", "layers x gradient norm, update / weight, zeros; or the charts", (TRAIN_KEYS,)),
    Key("g", "gates", "gates", "each gate with its rule, what was measured, its verdict", (TRAIN_KEYS,)),
    Key("r", "again", "", "another run, or go on with a stopped one", (TRAIN_KEYS,)),
    Key("question_mark,f1", "help", "help", "this page", (*MAPS, *LAYERS, TRAIN_KEYS, AUDIT_KEYS), "? F1"),
    Key("q", "quit", "quit", "quit", ALL),
)


def keys_of(screen: str) -> tuple[Key, ...]:
    """Rows that a screen obeys."""
    return tuple(key for key in KEYS if screen in key.screens)


def bindings(screen: str) -> list[BindingType]:
    """A screen's bindings, as Textual takes them."""
    return [Binding(key.keys, key.action, key.help, show=False) for key in keys_of(screen)]


def key_text(key: Key) -> str:
    """Write a row's keys as people read them."""
    return key.shown or key.keys.replace(",", " ")


def hint_spans(screen: str, width: int) -> list[tuple[str, str]]:
    """The hint line of a screen, cut at a whole word: (text, style name). Quit and help always fit."""
    rows = [key for key in keys_of(screen) if key.word]
    must = [key for key in rows if key.action in ("help", "quit")]
    room = width - sum(_hint_width(key) for key in must)
    kept = []
    for key in rows:
        if key not in must and _hint_width(key) <= room:
            kept.append(key)
            room -= _hint_width(key)
    spans: list[tuple[str, str]] = []
    for key in [*kept, *must]:
        spans += [(f" {key_text(key).split()[0]}", "key"), (f" {key.word} ", "quiet")]
    return spans


def help_lines() -> list[tuple[str, str]]:
    """The key table as lines for the help page: (keys, meaning)."""
    return [(key_text(key), key.help) for key in KEYS]


def markdown() -> str:
    """The key table for README."""
    where = {ALL: "everywhere", ALL[1:]: f"everywhere but the {GRID_KEYS}"}
    rows = [f"| {key_text(key)} | {key.help} | {where.get(key.screens, ', '.join(key.screens))} |" for key in KEYS]
    return "\n".join(["| key | what it does | where |", "|---|---|---|", *rows])


def _hint_width(key: Key) -> int:
    return len(key_text(key).split()[0]) + len(key.word) + 3
