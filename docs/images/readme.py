"""Draws docs/images/readme.png: what the demo model says of bundled pictures, and the neurons behind one word of each.

Run in the root of the repository, with the demo installed: ``python docs/images/readme.py dog=dog chelsea=cat``, where
``chelsea=cat`` is a part of a bundled picture's file name and the word to explain.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import mmneurons as mmn

SIDE, GAP, NEURONS, LOOK_AT = 320, 16, 3, 10


def main() -> None:
    """Draw the pictures and words that the command names, one column each."""
    vlm = mmn.load("demo")
    chosen = [argument.split("=") for argument in sys.argv[1:]]
    columns = [column(vlm, path_of(name), word) for name, word in chosen]
    height = max(drawn.height for drawn in columns)
    page = Image.new("RGB", (GAP + sum(drawn.width + GAP for drawn in columns), height + 2 * GAP), "white")
    left = GAP
    for drawn in columns:
        page.paste(drawn, (left, GAP))
        left += drawn.width + GAP
    page.save(Path(__file__).with_suffix(".png"), optimize=True)


def path_of(name: str) -> Path:
    """The bundled picture of exactly that name, or else the first whose name holds it."""
    paths = [picture.path for picture in mmn.demo.pictures()]
    return next((path for path in paths if path.stem == name), None) or next(p for p in paths if name in p.stem)


def column(vlm: mmn.VLM, path: Path, word: str) -> Image.Image:
    """The picture, the caption, where the word's neurons look, and the words that the first of them promote."""
    found = mmn.find(vlm, path)
    part = found[word]
    assert found.picture is not None
    above = fitted(found.picture)
    below = fitted(part.look(first=LOOK_AT).overlay(found.picture, legend=False))
    rows = [f"{row.neuron}   {' '.join(dict.fromkeys(row.promotes))}" for row in part.top(NEURONS, promotes=6)]
    lines = [f"“{found.caption}”", "", f"“{word}”: where its first {LOOK_AT} neurons look"]
    texts, small = ImageFont.load_default(15), ImageFont.load_default(13)
    size = (SIDE, above.height + below.height + 22 * (len(lines) + len(rows)) + 3 * GAP)
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    drawn.paste(above, (0, 0))
    top = above.height + GAP // 2
    for line in lines:
        pen.text((0, top), cut(line, texts), fill="black", font=texts)
        top += 22
    drawn.paste(below, (0, top))
    top += below.height + GAP // 2
    for line in rows:
        pen.text((0, top), cut(line, small), fill="black", font=small)
        top += 22
    return drawn


def fitted(picture: Image.Image) -> Image.Image:
    """The picture at a column's width."""
    return picture.resize((SIDE, round(picture.height * SIDE / picture.width)))


def cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a line as a column holds."""
    while font.getlength(line) > SIDE:
        line = line[:-2].rstrip() + "…"
    return line


if __name__ == "__main__":
    main()
