"""The palettes: what each style of a line looks like on a dark, a light or a 16-colour ground. Tables, and no drawing.

A style is a colour, bold or reverse where it says so, and the painted ground where it names none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Palette:
    """One theme. styles: by name; shades: grounds of a cell, from a little above its bound to far above it."""

    name: str
    ground: str
    field: str  # the ground of a line that is typed into
    styles: dict[str, str]
    shades: tuple[str, ...]
    is_ansi: bool = False


DARK = Palette("dark", "#101014", "#303038", {
    "text": "#d0d0d0",
    "quiet": "#999999",
    "title": "#ffffff bold",
    "key": "#ffffff bold",
    "watch": "#F0E442",
    "bad": "#D55E00 bold",
    "a": "#56B4E9",
    "b": "#E69F00",
    "rule": "#808080",
    "bar": "#5f87a0",
    "planted": "#D55E00 bold reverse",
}, ("#20150c", "#2e1c0d", "#3a230e", "#482a0e"))
LIGHT = Palette("light", "#fafafa", "#e4e4e4", {
    "text": "#303030",
    "quiet": "#5F5F5F",
    "title": "#000000 bold",
    "key": "#000000 bold",
    "watch": "#7A6A00",
    "bad": "#A63F00 bold",
    "a": "#0A5A91",
    "b": "#8A5A00",
    "rule": "#707070",
    "bar": "#4a7590",
    "planted": "#A63F00 bold reverse",
}, ("#fbf0e6", "#fbe6d4", "#fad9bd", "#f9d3b3"))
ANSI = Palette("ansi", "black", "black", {  # 0 to 15 by name; bright red on black is too dim in one table
    "text": "white",
    "quiet": "white",
    "title": "bright_white bold",
    "key": "bright_white bold",
    "watch": "bright_yellow",
    "bad": "bright_white bold on red",
    "a": "bright_cyan",
    "b": "bright_green",
    "rule": "white",
    "bar": "cyan",
    "planted": "bright_white bold reverse",
}, (), is_ansi=True)
PALETTES = {palette.name: palette for palette in (DARK, LIGHT, ANSI)}
