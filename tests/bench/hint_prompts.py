"""Hold the hints of a healthy model to what removing them shows: python -m tests.bench.hint_prompts MODEL.gguf.

Prints a table of 30 prompts: the first finding, the truth, what is called downstream, and what of it is false.

The truth is found without the hints. The residual's largest value is a sum: the block that wrote most of it gave birth
to it. That is held to an experiment: with the 4 largest inner channels of that block set to zero at the token, less
than a tenth of the value may be left. A first finding is right if it names that block, and that token or its equal.
A place that is called downstream is false if it is still a spike once the named cause is gone: the cause's carriers are
set to what the layer before has, at the cause's own place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from core.formats.open_model import open_model
from core.model.forward import Tap
from core.model.lockstep import run_lockstep
from core.model.stages import Place, place_text
from core.text.tokenizer import open_tokenizer
from core.trace.finding import Finding
from core.trace.grid import column_of, ratio, stats_at, why_step
from core.trace.hints import find_hints
from core.trace.record import CaptureContract, Token, Trace
from core.trace.run import Side, open_side
from core.trace.spikes import find_spikes, view_of
from core.trace.stats import Cell
from core.trace.taps import Change, chain, patch, record

GROUP = 10  # prompts side by side: each weight is decoded once for all of them
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
    side = open_side(open_model(Path(sys.argv[1])), "cpu")
    counts = {"right": 0, "born": 0, "downstream": 0, "false": 0}
    print(f"{'prompt':<28}{'tokens':>6}  {'first finding':<22}{'truth':<24}right  born  downstream, false")
    for start in range(0, len(PROMPTS), GROUP):
        prompts = PROMPTS[start : start + GROUP]
        traces = run(side, [encoded(side, prompt) for prompt in prompts])
        for prompt, traced, removed, calmed in zip(prompts, traces, *again(side, traces), strict=True):
            found, told = find_hints(traced, threshold=THRESHOLD), row(traced, removed, calmed)
            for name in counts:
                counts[name] += int(told[name])
            writer, token, channel = truth(traced)
            print(f"{prompt[:24]!r:<28}{len(traced.tokens):>6}  {found[0].kind + ' ' + place_text(found[0].place):<22}"
                  f"{f'{place_text(writer)} t{token} ch{channel}':<24}{'yes' if told['right'] else 'NO':<7}"
                  f"{'yes' if told['born'] else 'NO':<6}{told['downstream']}, {told['false']}", flush=True)
    print(f"first finding right {counts['right']} of {len(PROMPTS)}; birth told {counts['born']} of {len(PROMPTS)}; "
          f"downstream {counts['downstream']}, false {counts['false']}")


def encoded(side: Side, prompt: str) -> list[Token]:
    """The tokens of a text."""
    return [Token(i) for i in open_tokenizer(side.model.file).encode(prompt)]


def run(side: Side, prompts: Sequence[Sequence[Token]], taps: Sequence[Tap] = ()) -> list[Trace]:
    """Trace prompts side by side, each with its tap before the watching one; values are kept."""
    traces, lanes = [], []
    for i, tokens in enumerate(prompts):
        cells: dict[Place, Cell] = {}
        values: dict[Place, Tensor] = {}
        watch = record(cells.__setitem__, len(tokens), values)
        lanes.append(side.forward_run([t.id for t in tokens], chain(taps[i], watch) if taps else watch))
        traces.append(Trace("", CaptureContract(None, None, None, None, None, None), tuple(tokens), cells,
                            values=values))
    run_lockstep(lanes)
    return traces


def again(side: Side, traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Run each prompt without what gave birth to the residual's largest value, and without its first spike."""
    taps = [patch(without_birth(traced)) for traced in traces] + [patch(without_spike(traced)) for traced in traces]
    both = run(side, [traced.tokens for traced in traces] * 2, taps)
    return both[: len(traces)], both[len(traces) :]


def row(traced: Trace, removed: Trace, calmed: Trace) -> dict[str, int]:
    """Say of a prompt whether the first finding is right, whether the birth is told, and what is false."""
    found = find_hints(traced, threshold=THRESHOLD)
    writer, token, channel = truth(traced)
    had, left = (max(abs(float(values(of)[layer, "output"][token, channel])) for layer in range(traced.n_layer))
                 for of in (traced, removed))
    places = downstream(traced)
    return {
        "right": left < LEFT * had and is_right(traced, found[0], writer, token),
        "born": any(f.kind == "massive" and f.place == writer and f.channel == channel for f in found),
        "downstream": len(places), "false": sum(is_spike(calmed.cells, place) for place in places),
    }


def values(traced: Trace) -> Mapping[Place, Tensor]:
    """The values that the run kept."""
    assert traced.values is not None
    return traced.values


def truth(traced: Trace) -> tuple[Place, int, int]:
    """Return what wrote most of the residual's largest value, and that value's token and channel."""
    outputs = [values(traced)[layer, "output"] for layer in range(traced.n_layer)]
    widest = max(outputs, key=lambda x: float(x.abs().max()))
    token, channel = divmod(int(widest.abs().argmax()), widest.shape[1])
    writers = [(layer, stage) for layer in range(traced.n_layer) for stage in ("attn_out", "ffn_out")]
    sign = 1 if widest[token, channel] > 0 else -1
    return max(writers, key=lambda p: sign * float(values(traced)[p][token, channel])), token, channel


def without_birth(traced: Trace) -> dict[Place, Change]:
    """Set the largest inner channels of the block that wrote the residual's largest value to zero, at its token."""
    writer, token, _ = truth(traced)
    inner = (writer[0], "ffn_swigl" if writer[1] == "ffn_out" else "attn_mix")
    top = values(traced)[inner][token].abs().topk(CHANNELS).indices

    def removed(x: Tensor) -> Tensor:
        x = x.clone()
        x[token, top] = 0
        return x

    return {inner: removed}


def without_spike(traced: Trace) -> dict[Place, Change]:
    """Set the carriers of the first spike to what the layer before has."""
    spike = find_spikes(view_of(traced, THRESHOLD, "all"))[0]
    assert spike.carrier is not None and spike.place[0]
    rows = list(spike.carrier.tokens) if spike.carrier.is_main else list(range(len(traced.tokens)))
    calm = values(traced)[spike.place[0] - 1, spike.place[1]]

    def calmed(x: Tensor) -> Tensor:
        x = x.clone()
        x[rows] = calm[rows]
        return x

    return {spike.place: calmed}


def downstream(traced: Trace) -> list[Place]:
    """List what is called downstream of the first spike."""
    spike = find_spikes(view_of(traced, THRESHOLD, "all"))[0]
    return [place for place, how in spike.later if how == "downstream"]


def is_right(traced: Trace, first: Finding, writer: Place, token: int) -> bool:
    """Say whether the first finding names the block that gave birth, and a token of those that carry it."""
    ids = [t.id for t in traced.tokens]
    carries = first.token == token or (first.token is not None and ids[first.token] == ids[token])
    stages = {"ffn_out": ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out"), "attn_out": ("qkv", "attn_out")}
    return first.kind == "ratio" and first.layer == writer[0] and first.stage in stages[writer[1]] and carries


def is_spike(cells: Mapping[Place, Cell], place: Place) -> bool:
    """Say whether a place is a spike at scope all."""
    times = ratio(cells, place, "all")
    return times is not None and times > THRESHOLD and why_step(column_of(stats_at(cells, "all"), place), place) is None


if __name__ == "__main__":
    main()
