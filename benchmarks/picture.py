"""Draws the picture of the README: what a request with events costs beside the limit, as bars on a log scale."""

import math
from typing import Any
from xml.sax.saxutils import escape

from cases import CASES
from contenders import CONTENDERS
from figures import ratio

__all__ = ["draw"]

SHOWN = ("request-1-model", "request-10-model", "fan-out-10")
WIDTH, LEFT, RIGHT = 760, 170, 60  # pixels: the whole, the names, room for the numbers
BAR, STEP, GAP, TOP = 14, 19, 34, 52

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.head { font-size: 15px; font-weight: 600 }
.case { font-weight: 600 }
.grid { stroke: #d0d7de }
.bar { fill: #8c959f }
.ours { fill: #009688 }
.limit { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .grid { stroke: #30363d }
  .limit { fill: #484f58 }
}
"""


def draw(samples: Any, version: str) -> str:
    """Draw the cases that were measured; the scale fits the slowest."""
    groups = [(case.title, _bars(case, samples)) for case in CASES if case.name in SHOWN and samples.get(case.name)]
    slowest = max(number for _, bars in groups for _, number in bars)
    decades = max(1, math.ceil(math.log10(slowest)))
    pixels = (WIDTH - LEFT - RIGHT) / decades
    height = TOP + sum(GAP + STEP * len(bars) for _, bars in groups) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">CPU time of a request, as a multiple of the hand-written limit</title>',
        f"<style>{STYLE}</style>",
        _text(0, 20, f"CPU time of a request beside the hand-written limit (CPython {version}, log scale)", "head"),
    ]
    for decade in range(decades + 1):
        x = LEFT + decade * pixels
        parts.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 14}" y2="{height - 26}"/>')
        parts.append(_text(x, height - 10, f"{10**decade:,} ×", anchor="middle"))
    y = TOP
    for title, bars in groups:
        parts.append(_text(0, y + 12, title, "case"))
        y += GAP - 12
        for name, number in bars:
            kind = name if name in ("ours", "limit") else "bar"
            length = max(3.0, math.log10(max(number, 1.0)) * pixels)  # the limit is 1 ×, and is to be seen
            parts.append(_text(LEFT - 8, y + BAR - 3, CONTENDERS[name].title, anchor="end"))
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}"/>')
            words = f"{number:,.0f} ×" if number >= 10 else f"{number:.1f} ×"
            parts.append(_text(LEFT + length + 6, y + BAR - 3, words))
            y += STEP
        y += 12
    return "\n".join([*parts, "</svg>", ""])


def _bars(case: Any, samples: Any) -> list[tuple[str, float]]:
    ratios = [(name, ratio(case, samples, name)) for name in CONTENDERS]
    return sorted(((name, one.median) for name, one in ratios if one is not None), key=lambda bar: bar[1])


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'
