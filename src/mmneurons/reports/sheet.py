"""One picture of many: where the best neuron of each picture's first word looks."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmneurons.reports.figures import WordPanel
from mmneurons.reports.panels import panels
from mmneurons.runs.reader import Run
from mmneurons.table import visible

__all__ = ["write_sheet"]

TILE = 320
MARGIN = 12
MOST = 40


def write_sheet(run: Run, path: Path) -> Path:
    """Save one picture of the first pictures of a run that have words."""
    shown = [panel for _, _, panel in panels(run, MOST, neurons=1, words=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(shown).save(path)
    return path


def _draw(shown: list[WordPanel]) -> Image.Image:
    font = ImageFont.load_default(15)
    columns = min(4, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    cell = (TILE + MARGIN, TILE + 100 + MARGIN)
    page = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for index, panel in enumerate(shown):
        x, y = MARGIN + index % columns * cell[0], MARGIN + index // columns * cell[1]
        heatmap, row = panel.map(0), panel.rows[0]
        painted = panel.picture if heatmap is None else heatmap.overlay(panel.picture)
        painted.thumbnail((TILE, TILE))
        page.paste(painted, (x, y))
        below = y + painted.height + 4
        promotes = f"{row.neuron} promotes: {' '.join(row.promotes[:4])}"
        for line in (*_wrapped(panel.caption, font)[:2], *_wrapped(promotes, font)[:2]):
            pen.text((x, below), line, fill="black", font=font)
            below += 20
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit below a tile."""
    lines = [""]
    for word in visible(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
