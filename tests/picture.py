"""Draw README's picture of the console from a real run of the demonstration.

usage: python -m tests.picture [OUT.svg]    (default: evidence/console.svg)

Fonts are the reader's own: nothing is fetched where the picture is shown.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from apr_tui.app import Console
from apr_tui.request import Request
from core import session

OUT = Path(__file__).parents[1] / "evidence" / "console.svg"
SIZE = (80, 24)
PATIENCE_S = 120.0
FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


async def draw(path: Path | None = None, theme: str = "dark", size: tuple[int, int] = SIZE) -> str:
    """Run the console on a file (None: the demonstration) until its trace has ended, and return the SVG."""
    app = Console(Request(path=path, theme=theme), session)
    async with app.run_test(size=size) as pilot:
        for _ in range(int(PATIENCE_S / 0.05)):
            await pilot.pause(0.05)
            if app.worker.serial > 0 and app.owner is None:
                break
        await pilot.pause(0.2)
        return FACES.sub("", app.export_screenshot(title="apr-tui", simplify=True))


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.write_text(asyncio.run(draw()) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size} bytes")
