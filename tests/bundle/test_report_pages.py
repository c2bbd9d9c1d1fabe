"""Pages as a reader sees them: a hundred of them equal their tables, each colour is readable, a browser shows it."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from core import session
from core.bundle.page import SHADES
from core.bundle.page_html import STYLE
from core.model.stages import GRID_STAGES
from core.proof.verdict import Verdict
from core.trace.measures import Difference, State
from core.trace.request import RunOptions
from tests.bundle.test_reports import Read, check, pair
from tests.support.bundles import rows
from tests.support.traces import cells_of, trace_of, values

LEAST = 4.5  # WCAG's contrast for text
STRONG = range(3, SHADES + 1)  # shades on which every text is plain


def colours(theme: str) -> dict[str, str]:
    """The colours of a theme: the later rule counts where it is dark."""
    light, dark = STYLE.split("@media", 1)
    found = dict(re.findall(r"--(\w+):([^;}]+)", light))
    return found | (dict(re.findall(r"--(\w+):([^;}]+)", dark.split("}}")[0])) if theme == "dark" else {})


def rgb(colour: str) -> tuple[float, ...]:
    """Red, green and blue from 0 to 1 of #rgb, #rrggbb or r,g,b."""
    if colour[0] != "#":
        return tuple(int(n) / 255 for n in colour.split(","))
    digits = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
    return tuple(int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4))


def luminance(colour: tuple[float, ...]) -> float:
    """WCAG's relative luminance."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_is_readable_on_every_shade(theme):
    told = colours(theme)
    alphas = {int(i): float(a) for i, a in re.findall(r"td\.s(\d)\{background:rgba\(var\(--hue\),([\d.]+)",
                                                       STYLE)}
    assert set(alphas) == set(range(1, SHADES + 1))
    assert f"{','.join(f'td.s{i}' for i in STRONG)}{{color:var(--fg)}}" in STYLE
    for name, shade in product(("fg", "bad", "watch", "good", "quiet"), range(SHADES + 1)):
        if (name in ("good", "quiet") and shade) or (name != "fg" and shade in STRONG):
            continue
        a = alphas.get(shade, 0.0)
        ground = tuple(h * a + b * (1 - a) for h, b in zip(rgb(told["hue"]), rgb(told["bg"]), strict=True))
        light, dark = sorted((luminance(rgb(told[name])), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= LEAST, (theme, name, shade)


def seeded(i: int):
    """A trace, a pair or a check with numbers, layers and oddities of its own."""
    draw, rng = random.Random(i), np.random.default_rng(i)
    n_layer, scale = draw.randrange(1, 9), 10.0 ** draw.randrange(-6, 6)
    x = {place: np.asarray(v) * scale for place, v in values(3, n_layer=n_layer).items()}
    for place in draw.sample(sorted(x, key=str), 2):
        x[place] = x[place] * draw.choice((0.0, 30.0, np.nan, np.inf))
    trace = replace(trace_of(cells_of(x, 3), 3), name=f"m{i}<&>|.gguf", planted=draw.choice((None, "shift@0.qkv")))
    if i % 3 == 0:
        return trace
    if i % 3 == 1:
        return replace(check(), trace=trace, errors={
            p: replace(e, nmse=float(rng.exponential(1e-15)) * 10 ** draw.randrange(0, 6))
            for p, e in check().errors.items() if p[0] < n_layer})
    cells = {(layer, s): Difference(float(rng.exponential(1e-6)), 1.0, float(rng.exponential()), 0, 1, 0.0,
                                    float(rng.exponential(1e-6)), 1e-6, draw.choice(list(State)[:3]))
             for layer in range(n_layer) for s in GRID_STAGES}
    return replace(pair(draw.choice(list(Verdict))), a=trace, b=replace(trace, name="b.gguf"), cells=cells,
                   first=(0, draw.choice(GRID_STAGES)))


def equals_its_table(i: int, folder) -> None:
    judged = seeded(i)
    out = session.export(judged, folder / str(i), RunOptions(scope=("all", "last", "rest")[i % 5 % 3]))
    page = Read(out / "report.html")
    kind, column = (("stats.csv", "std"), ("local.csv", "nmse"), ("cells.csv", "rel_l2"))[i % 3]
    table, scope = rows(out / kind), ("all", "last", "rest")[i % 5 % 3]
    of_grid = [r[column] for r in table if r["stage"] in GRID_STAGES and r[column] and r["layer"]
               and (i % 3 or r["scope"] == scope)]
    assert sorted(page.data) == sorted(of_grid), i
    shown = set(page.words)
    assert all(number in shown for row in table for number in row.values() if number), i
    assert all(link[1:] in page.anchors for link in page.links if link.startswith("#")), i


def test_pages_of_every_kind_equal_their_tables(tmp_path):
    for i in range(6):
        equals_its_table(i, tmp_path)


@pytest.mark.slow
def test_a_hundred_pages_equal_their_tables(tmp_path):
    for i in range(100):
        equals_its_table(i, tmp_path)


def pixels(path) -> np.ndarray:
    """A PNG of 8 bits a channel as [height, width, channels]; filters as the format has them."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
        packed += body if kind == b"IDAT" else b""
        at += size + 12
    assert depth == 8 and colour in (2, 6)
    n = {2: 3, 6: 4}[colour]
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * n)
    out = np.zeros((height, width * n), np.uint8)
    for y, line in enumerate(lines):
        left, up = np.zeros(n, int), out[y - 1].astype(int) if y else np.zeros(width * n, int)
        row, before = line[1:].astype(int), np.zeros(n, int)
        for x in range(0, width * n, n):
            b = up[x:x + n]
            p = left + b - before
            near = np.stack([abs(p - left), abs(p - b), abs(p - before)]).argmin(0)
            paeth = np.choose(near, [left, b, before])
            add = (0, left, b, (left + b) // 2, paeth)[line[0]]
            left, before = (row[x:x + n] + add) % 256, b
            out[y, x:x + n] = left
    return out.reshape(height, width, n)[..., :3]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no headless browser is installed")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_the_verdict_first_in_its_theme(tmp_path, theme):
    out = session.export(pair(), tmp_path / "v", repeat="apr-tui compare a b")
    shot = tmp_path / "shot.png"
    subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    f"--blink-settings=preferredColorScheme={('dark', 'light').index(theme)}",
                    f"--screenshot={shot}", "--window-size=700,260", (out / "report.html").as_uri()],
                   check=True, capture_output=True, timeout=120,
                   env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})
    image, told = pixels(shot).astype(int), colours(theme)
    ground, bad = (np.round(np.array(rgb(told[name])) * 255) for name in ("bg", "bad"))
    assert np.abs(image[2, 2] - ground).max() <= 1, f"the page is {theme}"
    is_ink = np.abs(image - ground).max(-1) > 60
    first = np.flatnonzero(is_ink.any(1))[0]
    verdict = image[first:first + 24][is_ink[first:first + 24]]
    assert first < 80 and (np.abs(verdict - bad).max(-1) < 8).sum() > 40, "the verdict is first, in its tone"
    assert not (np.abs(verdict - np.round(np.array(rgb(told["fg"])) * 255)).max(-1) < 8).any(), "nothing before it"
