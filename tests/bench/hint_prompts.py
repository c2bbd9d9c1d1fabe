"""Hold the hints of a healthy model to what removing them shows: python -m tests.bench.hint_prompts MODEL.gguf.

Prints a table of 30 prompts: the first finding, the truth, what is called downstream, and what of it is false.

The truth is found without the hints. The residual's largest value is a sum: the block that wrote most of it gave birth
to it. That is held to an experiment: with the 4 largest inner channels of that block set to zero at the token, less
than a tenth of the value may be left. A first finding is right if it names that block, and that token or one of the
same id. A place that is called downstream is false if it is still a spike once the named cause is gone: the cause's
carriers are set to what the layer before has, at the cause's own place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from core.formats.open_model import open_model
from core.model.lockstep import drive
from core.model.stages import Place, place_text
from core.session import trace
from core.trace.finding import Finding
from core.trace.grid import column_of, ratio, stats_at, why_step
from core.trace.hints import find_hints
from core.trace.record import Trace
from core.trace.request import Prompt, Source
from core.trace.run import Side, open_side
from core.trace.spikes import find_spikes, view_of
from core.trace.stats import Cell
from core.trace.taps import chain, patch, record, record_values

CHANNELS = 4
LEFT = 0.1  # of the residual's largest value, once what gave birth to it is gone
THRESHOLD = 10.0
PROMPTS = (
    "What is 2+2?", "Hello", "The capital of France is", "the the the the the the cat", "A", ".", "!!!!!!!!!!!!",
    "ok ok",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return", "\n\nOnce upon a time", "1 2 3 4 5 6 7 8 9",
    "<|im_start|>user\nWhat is the tallest mountain?<|im_end|>\n<|im_start|>assistant\n", "   leading spaces",
    "Der schnelle braune Fuchs springt über den faulen Hund.", "こんにちは、元気ですか", "Привет, как дела?",
    "SELECT name FROM users WHERE id = 7;", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "import numpy as np\nimport torch\n",
    "She sells sea shells by the sea shore. " * 8, '{"name": "Ada", "born": 1815, "tags": ["a", "b"]}',
    "Dear Sir or Madam, I am writing to complain about", "Q: Who wrote Hamlet?\nA:", "x = 3.14159 * r ** 2",
    "Roses are red, violets are blue,", "<html><body><p>Hi</p></body></html>", "and of the to in a is that it",
    "In 1969, Neil Armstrong walked on the Moon. The event was watched by", "no no no no no no no no yes",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer The slings and arrows",
)


def main() -> None:
    """Print a row a prompt, and the rates."""
    path = Path(sys.argv[1])
    side = open_side(open_model(path), "cpu")
    n_right = n_born = n_downstream = 0
    false: list[str] = []
    print(f"{'prompt':<26}{'tokens':>6}  {'first finding':<22}{'truth':<24}{'right':<7}{'born':<6}downstream, false")
    for prompt in PROMPTS:
        traced = trace(Source(path, device="cpu"), Prompt(prompt), keep_values=True, witness=False)
        found = find_hints(traced, threshold=THRESHOLD)
        writer, token, channel = truth(traced)
        holds = experiment(side, traced, writer, token, channel)
        right = holds and is_right(traced, found[0], writer, token)
        born = any(f.kind == "massive" and f.place == writer and f.channel == channel for f in found)
        still, n = still_spiking(side, traced)
        n_right, n_born, n_downstream = n_right + right, n_born + born, n_downstream + n
        false += still
        print(f"{prompt[:24]!r:<26}{len(traced.tokens):>6}  {found[0].kind + ' ' + place_text(found[0].place):<22}"
              f"{f'{place_text(writer)} t{token} ch{channel}':<24}{'yes' if right else 'NO':<7}"
              f"{'yes' if born else 'NO':<6}{n}, {len(still)} {' '.join(still)}", flush=True)
    print(f"first finding right {n_right} of {len(PROMPTS)}; birth told {n_born} of {len(PROMPTS)}; "
          f"downstream {n_downstream}, false {len(false)}")


def truth(traced: Trace) -> tuple[Place, int, int]:
    """Return what wrote most of the residual's largest value, and that value's token and channel."""
    values: Mapping[Place, Tensor] = traced.values or {}
    outputs = [values[layer, "output"] for layer in range(traced.n_layer)]
    widest = max(outputs, key=lambda x: float(x.abs().max()))
    token, channel = divmod(int(widest.abs().argmax()), widest.shape[1])
    writers = [(layer, stage) for layer in range(traced.n_layer) for stage in ("attn_out", "ffn_out")]
    sign = 1 if widest[token, channel] > 0 else -1
    return max(writers, key=lambda p: sign * float(values[p][token, channel])), token, channel


def experiment(side: Side, traced: Trace, writer: Place, token: int, channel: int) -> bool:
    """Say whether the residual's value goes with the largest inner channels of the block that wrote it."""
    values: Mapping[Place, Tensor] = traced.values or {}
    inner = (writer[0], "ffn_swigl" if writer[1] == "ffn_out" else "attn_mix")
    top = values[inner][token].abs().topk(CHANNELS).indices

    def removed(x: Tensor) -> Tensor:
        x = x.clone()
        x[token, top] = 0
        return x

    seen: dict[Place, Tensor] = {}
    drive([side.lane([t.id for t in traced.tokens], chain(patch({inner: removed}), record_values(seen)))])
    had, left = (max(abs(float(of[layer, "output"][token, channel])) for layer in range(traced.n_layer))
                 for of in (values, seen))
    return left < LEFT * had


def is_right(traced: Trace, first: Finding, writer: Place, token: int) -> bool:
    """Say whether the first finding names the block that gave birth, and a token of those that carry it."""
    ids = [t.id for t in traced.tokens]
    carries = first.token == token or (first.token is not None and ids[first.token] == ids[token])
    stages = {"ffn_out": ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out"), "attn_out": ("qkv", "attn_out")}
    return first.kind == "ratio" and first.layer == writer[0] and first.stage in stages[writer[1]] and carries


def still_spiking(side: Side, traced: Trace) -> tuple[list[str], int]:
    """Return the places called downstream that are spikes all the same without their cause, and how many there are."""
    view = view_of(traced, THRESHOLD, "all")
    ids, values = [t.id for t in traced.tokens], traced.values or {}
    still: list[str] = []
    n = 0
    for spike in find_spikes(view):
        places = [place for place, how in spike.later if how == "downstream"]
        if not places or spike.carrier is None:
            continue
        rows = list(spike.carrier.tokens) if spike.carrier.is_main else list(range(len(ids)))
        calm = values[(spike.place[0] or 0) - 1, spike.place[1]]
        cells = without(side, ids, spike.place, rows, calm)
        still += [place_text(place) for place in places if is_spike(cells, place)]
        n += len(places)
    return still, n


def without(side: Side, ids: Sequence[int], place: Place, rows: list[int], calm: Tensor) -> dict[Place, Cell]:
    """Run with the rows of a place as calm has them; returns the cells."""
    def calmed(x: Tensor) -> Tensor:
        x = x.clone()
        x[rows] = calm[rows].to(x)
        return x

    cells: dict[Place, Cell] = {}
    drive([side.lane(ids, chain(patch({place: calmed}), record(cells.__setitem__, len(ids))))])
    return cells


def is_spike(cells: Mapping[Place, Cell], place: Place) -> bool:
    """Say whether a place is a spike at scope all."""
    times = ratio(cells, place, "all")
    return times is not None and times > THRESHOLD and why_step(column_of(stats_at(cells, "all"), place), place) is None


if __name__ == "__main__":
    main()
