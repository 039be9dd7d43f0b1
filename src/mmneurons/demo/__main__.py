"""``python -m mmneurons.demo``: the neurons behind the words of the bundled pictures, and where they look."""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import mmneurons as mmn
from mmneurons.demo import Picture, pictures
from mmneurons.errors import MMNeuronsError

__all__ = ["main"]

TILE = 320
MARGIN = 12


def main() -> None:
    """Print what is found and save a picture of it."""
    parser = argparse.ArgumentParser(prog="python -m mmneurons.demo", description=__doc__)
    parser.add_argument(
        "--pictures", type=int, default=12, help="how many of the bundled pictures (default 12; 0: all)"
    )
    parser.add_argument("--neurons", type=int, default=3, help="how many neurons to print for a word (default 3)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="where to save (default demo-output)")
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        run(options.pictures, options.neurons, options.out)
    except MMNeuronsError as error:
        sys.exit(f"mmneurons: {error}")


def run(limit: int, neurons: int, out: Path) -> None:
    """Find, print and save.

    Args:
        limit: how many pictures; 0 for all.
        neurons: how many to print for a word.
        out: the folder to save into.
    """
    started = time.perf_counter()
    vlm = mmn.load("demo")
    print(f"{vlm!r}\nloaded in {time.perf_counter() - started:.1f} s\n")
    chosen = spread(pictures(), limit)
    shown = []
    for start in range(0, len(chosen), 8):
        batch = chosen[start : start + 8]
        for picture, found in zip(batch, mmn.find(vlm, [picture.path for picture in batch]), strict=True):
            print(f"{picture.path.name} shows: {', '.join(picture.objects)}\n  {found.caption}")
            for word in dict.fromkeys(found.words):
                print(found[word].top(neurons))
            print(flush=True)
            if found.words:
                shown.append(found[found.words[0]])
    out.mkdir(parents=True, exist_ok=True)
    sheet(shown).save(out / "where-they-look.png")
    seconds = time.perf_counter() - started
    print(f"{len(chosen)} pictures in {seconds:.0f} s. Where they look: {out / 'where-they-look.png'}")


def spread(every: list[Picture], limit: int) -> list[Picture]:
    """The first picture and others evenly over the rest, so that every kind is there."""
    if limit <= 0 or limit >= len(every):
        return every
    return [every[index * len(every) // limit] for index in range(limit)]


def sheet(parts: list[mmn.WordFinding]) -> Image.Image:
    """One picture of several: each with the map of its first word's best neuron, the word and the caption below."""
    font = ImageFont.load_default(15)
    columns = min(4, max(1, len(parts)))
    rows = -(-len(parts) // columns)
    cell = (TILE + MARGIN, TILE + 70 + MARGIN)
    page = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for index, part in enumerate(parts):
        x, y = MARGIN + index % columns * cell[0], MARGIN + index // columns * cell[1]
        painted = part.heatmap(0)
        painted.thumbnail((TILE, TILE))
        page.paste(painted, (x, y))
        row = part.top(1, promotes=4)[0]
        below = y + painted.height + 4
        promotes = " ".join(row.promotes)
        for line in (*wrapped(part.found.caption, font)[:2], *wrapped(f"{row.neuron} promotes: {promotes}", font)[:1]):
            pen.text((x, below), line, fill="black", font=font)
            below += 20
    return page


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit below a tile."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


if __name__ == "__main__":
    main()
