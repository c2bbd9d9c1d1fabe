"""The table of keys; bindings, hints, the help screen and README's table are made from it. It does nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType

GRID_KEYS, LAYER_KEYS, PAIR_KEYS, CHECK_KEYS, CHECK_LAYER_KEYS = "grid", "layer", "comparison", "check", "checked layer"
LADDER_KEYS, PAGE_KEYS, TRAIN_KEYS, AUDIT_KEYS = "ladder", "page", "training", "audit"
DAMAGE_KEYS = "damage"


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
       AUDIT_KEYS, DAMAGE_KEYS)
MOVING = ("move(", "page(", "end(", "head(")
MAPS = (GRID_KEYS, PAIR_KEYS, CHECK_KEYS)
LAYERS = (LAYER_KEYS, CHECK_LAYER_KEYS)
SIDEWAYS = (*MAPS, *LAYERS, TRAIN_KEYS, DAMAGE_KEYS)
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
    Key("enter", "open", "rows", "the rows of the tensor, the dearest first", (DAMAGE_KEYS,)),
    Key("escape", "back", "back", "go back; first cancel what runs", ALL[1:], "esc"),
    Key("escape", "back", "", "cancel the run", (GRID_KEYS,), "esc"),
    Key("g", "pair", "compare", "compare with the same model in the other format", (GRID_KEYS,)),
    Key("G", "pair_with", "", "compare with a file that is asked for", (GRID_KEYS,)),
    Key("x", "check", "check", "check every stage against float64 on its own inputs", (GRID_KEYS,)),
    Key("a", "audit", "", "audit the file by itself: what its bytes and keys prove, hints, facts", (GRID_KEYS,)),
    Key("D", "damage", "", "what each tensor's rounding costs, without an original", (GRID_KEYS,)),
    Key("b", "bisect", "bisect", "prove the cause by grafts; then: their ladder", (PAIR_KEYS,)),
    Key("v", "card", "why", "the card of the verdict: measured, floor, reasons, what would change it",
        (PAIR_KEYS, CHECK_KEYS)),
    Key("v", "card", "recipe", "what to raise for a budget of bytes", (DAMAGE_KEYS,)),
    Key("s", "scope", "scope", "next scope: all, last, first, rest, the token of the peak", (GRID_KEYS, LAYER_KEYS)),
    Key("n", "finding(1)", "next",
        "next finding; in a comparison: cell that differs; in a check: bad stage; of a bill: the next in cost",
        (*MAPS, DAMAGE_KEYS)),
    Key("p", "finding(-1)", "", "the one before", (*MAPS, DAMAGE_KEYS)),
    Key("i", "prompt", "prompt", "another prompt, and run", (GRID_KEYS,)),
    Key("m", "metric", "metric", "next metric", (*MAPS, DAMAGE_KEYS)),
    Key("s", "scope", "scope", "next scope, of the metrics A, B and ratio", (PAIR_KEYS,)),
    Key("e", "export", "export", "write the evidence to a folder", (*MAPS, LADDER_KEYS, DAMAGE_KEYS)),
    Key("f", "file", "file", "open another file or bundle", (GRID_KEYS,)),
    Key("o", "overview", "overview", "overview strip: stages down, layers across", MAPS),
    Key("o", "overview", "order", "the tensors in order of cost, with their bytes", (DAMAGE_KEYS,)),
    Key("slash", "jump", "jump", "jump to a place (3.ffn_swigl, 12) or to a scope (rest, pos:4)", MAPS, "/"),
    Key("r", "run", "run", "run again", (*MAPS, DAMAGE_KEYS)),
    Key("c", "copy", "copy", "copy the command that reproduces this view (OSC 52)",
        (*MAPS, LADDER_KEYS, TRAIN_KEYS, AUDIT_KEYS, DAMAGE_KEYS)),
    Key("d", "detail", "detail", "show or hide the detail stages (q_rope, attn_mix ...)",
        (*LAYERS, PAIR_KEYS, CHECK_KEYS)),
    Key("1", "view('histogram')", "2 3 4 views", "the stage's values as a histogram; again: away", (LAYER_KEYS,)),
    Key("2", "view('spread')", "", "the stage's weights beside those of other layers", (LAYER_KEYS,)),
    Key("3", "view('attention')", "", "a head's attention over the tokens, as a heat map", (LAYER_KEYS,)),
    Key("4", "view('lens')", "", "what the model would say if it stopped there", (LAYER_KEYS,)),
    Key("left_square_bracket", "head(-1)", "", "the head before, of the attention", (LAYER_KEYS,), "["),
    Key("right_square_bracket", "head(1)", "", "the next head", (LAYER_KEYS,), "]"),
    Key("t", "train", "", "train a model, or follow a run; there: back to the grid, the run goes on",
        (GRID_KEYS, TRAIN_KEYS)),
    Key("enter,T", "trace", "trace", "trace the newest checkpoint; the run goes on", (TRAIN_KEYS,)),
    Key("p", "pause", "pause", "pause the run after the step in flight, or go on", (TRAIN_KEYS,)),
    Key("w", "save", "write", "write a checkpoint after the step in flight", (TRAIN_KEYS,)),
    Key("o", "layers", "layers", "layers x gradient norm, update / weight, zeros; or the charts", (TRAIN_KEYS,)),
    Key("g", "gates", "gates", "each gate with its rule, what was measured, its verdict", (TRAIN_KEYS,)),
    Key("r", "again", "", "another run, or go on with a stopped one", (TRAIN_KEYS,)),
    Key("C", "chat", "", "the prompt through the file's chat template, or raw; and run", (GRID_KEYS,)),
    Key("colon,ctrl+p", "palette", "", "find what to do by its words", ALL, ": ctrl-p"),
    Key("M", "mouse", "", "the mouse, on or off: wheel and click; over SSH it is off", ALL),
    Key("ctrl+l", "redraw", "", "draw the screen anew", ALL, "ctrl-l"),
    Key("question_mark,f1", "help", "help", "this screen's keys, then all others, marks and metrics", ALL, "? F1"),
    Key("q", "quit", "quit", "quit", (GRID_KEYS,)),
    Key("q", "quit", "", "leave this page; quit where it is the first one", ALL[1:]),
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
    must = [key for key in rows if key.action in ("help", "quit")]  # the way out and the way on
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


def help_lines(screen: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The key table as lines for the help page, (keys, meaning): of this screen, and of the others with where."""
    own = [(key_text(key), key.help) for key in keys_of(screen)]
    others = [(key_text(key), f"{key.help} ({_where(key)})") for key in KEYS if screen not in key.screens]
    return own, others


def commands_of(screen: str) -> dict[str, str]:
    """What can be done on a screen beside moving about, in words with the keys: text -> action."""
    rows = [key for key in keys_of(screen) if not key.action.startswith(MOVING) and key.action != "palette"]
    return {f"{key.action.partition('(')[0]}: {key.help}  [{key_text(key)}]": key.action for key in rows}


def markdown() -> str:
    """The key table for README."""
    rows = [f"| {key_text(key)} | {key.help} | {_where(key)} |" for key in KEYS]
    return "\n".join(["| key | what it does | where |", "|---|---|---|", *rows])


def _where(key: Key) -> str:
    return {ALL: "everywhere", ALL[1:]: f"everywhere but the {GRID_KEYS}"}.get(key.screens, ", ".join(key.screens))


def _hint_width(key: Key) -> int:
    return len(key_text(key).split()[0]) + len(key.word) + 3
