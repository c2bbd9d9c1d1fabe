"""The palettes: what each style of a line looks like on a dark, a light or a 16-colour ground. Tables, and no drawing.

A style is a colour, bold or reverse where it says so, and the painted ground where it names none of its own. The
colours are of xterm's table of 256, which takes half the bytes on the line and looks the same everywhere.
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


DARK = Palette("dark", "#121212", "#303030", {
    "text": "#d0d0d0",
    "quiet": "#9e9e9e",
    "title": "#ffffff bold",
    "key": "#ffffff bold",
    "watch": "#ffff5f",
    "bad": "#d75f00 bold",
    "a": "#5fafff",
    "b": "#ffaf00",
    "rule": "#808080",
    "bar": "#5f87af",
    "planted": "#d75f00 bold reverse",
}, ("#20150c", "#2e1c0d", "#3a230e", "#482a0e"))
LIGHT = Palette("light", "#ffffff", "#e4e4e4", {
    "text": "#303030",
    "quiet": "#5f5f5f",
    "title": "#000000 bold",
    "key": "#000000 bold",
    "watch": "#5f5f00",
    "bad": "#af0000 bold",
    "a": "#005faf",
    "b": "#875f00",
    "rule": "#6c6c6c",
    "bar": "#5f5faf",
    "planted": "#af0000 bold reverse",
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
