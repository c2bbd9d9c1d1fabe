"""Traces made of small arrays and of published numbers, without torch and without a model. No golden values of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from core.model.stages import USUAL, Place
from core.trace.record import CaptureContract, NextToken, Token, Trace
from core.trace.stats import ROW, Cell, Massive, ScopeStats, Stats, TokenStats, peaks_of

# Published std of a 7B model, all 7 tokens: ffn_silu, ffn_swigl, ffn_out, output, layer by layer.
PUBLISHED = """
.1597 .0881 .3245 .4016|.0426 .0613 .3448 .6464|.0522 .0709 .2163 .7159|.1679 1.2216 11.4590 11.7756
.1346 .3903 3.8374 15.4269|.0942 .3428 1.7247 16.9458|.2142 .2033 1.5377 18.2438|.2371 .2219 1.0579 19.0114
.2401 .2163 1.1145 19.8066|.1455 .2593 1.3315 20.8351|.2083 .1698 .7159 21.2741|.2028 .1616 .7573 21.7559
.2192 .1996 1.2621 22.7425|.2215 .2237 1.4689 23.9407|.2221 .1999 1.1370 24.8312|.2214 .1473 .7143 25.3237
.2205 .1505 .5788 25.6418|.2371 .1634 .5050 25.6967|.2630 .1935 .5996 25.7198|.2854 .2293 .6702 25.7321
.3257 .3167 .9890 25.4083|.3526 .3699 1.0412 25.3859|.3764 .4591 1.3017 25.3309|.3474 .5495 1.6514 24.6528
.3783 .5680 1.7177 24.0857|.4217 .9361 2.8708 23.2553|.5646 1.4519 5.8391 19.6001|.9590 2.2472 6.4581 13.5469
"""
PUBLISHED_STAGES = ("ffn_silu", "ffn_swigl", "ffn_out", "output")
UNROUNDED = {"min", "max", *(name for name in ROW.names or () if ROW[name] == np.int64)}  # equal however it is measured
FACTS = CaptureContract("apr-tui", "qwen2", 28, 64, 99, "sample", compute="f32", device="cpu", threads=2,
                        dtype="float32")


def published_cells() -> dict[Place, Cell]:
    """Return the published table as cells at scope all."""
    rows = [row.split() for line in PUBLISHED.split("\n") for row in line.split("|") if row]
    return {(layer, stage): ScopeStats({"all": Stats(std=float(std))})
            for layer, row in enumerate(rows) for stage, std in zip(PUBLISHED_STAGES, row, strict=True)}


def token_stats(
    x_TW: npt.NDArray[np.floating], first: int = 0, top: Sequence[tuple[int, int, float]] = (),
    massive: Massive | None = None,
) -> TokenStats:
    """Measure an array [tokens, width] as the tap does."""
    bad = ~np.isfinite(x_TW)
    n_T = (~bad).sum(1)
    x = np.where(bad, 0, x_TW).astype(np.float64)
    mean_T = x.sum(1) / np.maximum(n_T, 1)
    dev = np.where(bad, 0, x - mean_T[:, None])
    nan = np.isnan(x_TW)
    low_T, high_T = np.where(bad, np.inf, x).min(1), np.where(bad, -np.inf, x).max(1)
    columns = {
        "mean": mean_T, "m2": (dev**2).sum(1), "min": low_T, "max": high_T, "sumsq": (x**2).sum(1), "nan": nan.sum(1),
        "inf": np.isinf(x_TW).sum(1), "zero": (x_TW == 0).sum(1),
        "peak_channel": np.where(n_T > 0, np.where(bad, -1, np.abs(x)).argmax(1), -1),
        "nan_channel": np.where(nan.any(1), nan.argmax(1), -1),
    }
    table = np.empty((1, len(x_TW)), ROW)
    for name in ROW.names or ():
        table[name] = columns[name]
    return TokenStats(x_TW.shape[1], first, table, 0, peaks_of(top, massive, None, first))


def values(n_token: int = 7, n_layer: int = 10, width: int = 64, seed: int = 0) -> dict[Place, npt.NDArray[np.float32]]:
    """Return quiet values of every stage: about 1 in size, logits of the last token only."""
    rng = np.random.default_rng(seed)
    places = [(layer, s.name) for s in USUAL for layer in ((None,) if s.whole else range(n_layer))]
    sizes = {place: 1 if place[1] == "logits" else n_token for place in places}
    return {place: rng.standard_normal((rows, width)).astype(np.float32) for place, rows in sizes.items()}


def cells_of(arrays: Mapping[Place, npt.NDArray[np.floating]], n_token: int = 7) -> dict[Place, Cell]:
    """Measure every array; one with fewer rows than tokens has the last ones."""
    return {place: token_stats(x, n_token - len(x)) for place, x in arrays.items()}


def trace_of(cells: Mapping[Place, Cell], n_token: int = 7, **more: object) -> Trace:
    """Wrap cells in a trace with known facts and tokens."""
    tokens = tuple(Token(100 + i, f"t{i}") for i in range(n_token))
    known: dict[str, object] = {"tokens": tokens, "top": (NextToken(3, "four", 12.5),), "origin": {"seed": 7}}
    return Trace("tiny.gguf", FACTS, cells=cells, **(known | more))  # type: ignore[arg-type]


def spiking(
    token: int = 0, times: float = 60.0, layer: int = 3, channel: int | None = 17, **more: int,
) -> dict[Place, npt.NDArray[np.float32]]:
    """Quiet values but for one token of ffn_swigl, ffn_out and every output from a layer on: its std is times as large.

    channel: which one holds it, as in a model's massive activation; None: all of them, as after a scale.
    """
    x = values(**more)
    for place in x:
        if place[0] is not None and (place in ((layer, "ffn_swigl"), (layer, "ffn_out"))
                                     or (place[1] == "output" and place[0] >= layer)):
            if channel is None:
                x[place][token] *= times
            else:
                x[place][token, channel] = times * x[place].shape[1] ** 0.5
    return x
