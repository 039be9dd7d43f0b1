"""Drawings of single things: fetched as npm packages, rasterized once, kept as one file.

`python -m zoo.sprites --work DIR` leaves `DIR/sprites.pkl`: concept -> list of `Sprite`.
"""

import argparse
import io
import json
import pickle
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["HELD_OUT", "STYLES", "TRAINED", "Concept", "Sprite", "build", "load", "read_concepts", "threshold"]

HERE = Path(__file__).parent
SIZE = 160
HELD_OUT = "twemoji"
# style -> npm package
STYLES = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent-3d": "@lobehub/fluent-emoji-3d",
    "emojione": "@iconify-json/emojione",
    "emojione-v1": "@iconify-json/emojione-v1",
    "fxemoji": "@iconify-json/fxemoji",
    "openmoji": "@iconify-json/openmoji",
    "streamline": "@iconify-json/streamline-emojis",
    "twemoji": "@iconify-json/twemoji",
}
TRAINED = tuple(style for style in STYLES if style != HELD_OUT)
# FxEmoji names its drawings in its own way: slug of the others -> its own, where dashes are not the only difference.
OWN_SLUGS = json.loads((HERE / "own_slugs.json").read_text())


@dataclass(frozen=True)
class Concept:
    """A thing with a name.

    Attributes:
        name: Singular noun, lower case ("dog", "palm tree"), or the plural where there is no other ("scissors").
        slugs: Drawings that show it.
        number: "count" (a dog, two dogs), "mass" (bread) or "plural" (scissors).
    """

    name: str
    slugs: tuple[str, ...]
    number: str


@dataclass(frozen=True)
class Sprite:
    """One drawing, cropped to its opaque part.

    Attributes:
        style: Key of `STYLES`.
        slug: Name of the drawing in its set.
        rgba: (height, width, 4) uint8; the longer side is `SIZE`.
    """

    style: str
    slug: str
    rgba: np.ndarray


def read_concepts(path: Path = HERE / "concepts.txt") -> tuple[Concept, ...]:
    """Reads the committed list of concepts."""
    number = {"~": "mass", "+": "plural"}
    concepts = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, _, slugs = line.partition(":")
        concepts.append(Concept(name.rstrip("~+"), tuple(slugs.split()), number.get(name[-1], "count")))
    return tuple(concepts)


def fetch(work: Path) -> dict[str, Path]:
    """Downloads and unpacks the pinned packages under `work/npm`; returns style -> folder."""
    versions = json.loads((HERE / "package.json").read_text())["dependencies"]
    root = work / "npm"
    root.mkdir(parents=True, exist_ok=True)
    folders = {}
    for style, package in STYLES.items():
        stem = f"{package.lstrip('@').replace('/', '-')}-{versions[package]}"
        folder = folders[style] = root / stem
        if not folder.exists():
            archive = root / f"{stem}.tgz"
            if not archive.exists():
                subprocess.run(["npm", "pack", "--silent", f"{package}@{versions[package]}"], cwd=root, check=True)
            with tarfile.open(archive) as tar:
                tar.extractall(root / "unpacking", filter="data")
            (root / "unpacking" / "package").rename(folder)
    return folders


def rasterize(svg: str, size: int) -> Image.Image:
    """Draws an SVG with its longer side at `size` pixels, on nothing."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size)))).convert("RGBA")


def threshold(level: int) -> list[int]:
    """Look-up table of a channel: white above the level, black up to it."""
    return [255 * (value > level) for value in range(256)]


def trim(image: Image.Image, size: int) -> Image.Image | None:
    """Crops to the opaque part and scales the longer side to `size`; None for an empty drawing."""
    box = image.getchannel("A").point(threshold(20)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = size / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


class SpriteSet:
    """The drawings of one style, by slug."""

    def __init__(self, style: str, folder: Path, hexcodes: dict[str, str]) -> None:
        self.style, self.folder, self.hexcodes = style, folder, hexcodes
        self.icons: dict = {}
        if style != "fluent-3d":
            self.data = json.loads((folder / "icons.json").read_text())
            self.icons = self.data["icons"]
            self.own = {slug.replace("-", ""): slug for slug in self.icons}

    def draw(self, slug: str, size: int = SIZE) -> Image.Image | None:
        """The drawing named `slug`, or None where the set has none."""
        if self.style == "fluent-3d":
            code = self.hexcodes.get(slug, "")
            for name in (code, code.replace("-fe0f", ""), f"{code}-fe0f"):
                path = self.folder / "assets" / f"{name}.webp"
                if code and path.exists():
                    return trim(Image.open(path).convert("RGBA"), size)
            return None
        if self.style == "streamline":
            slug = next((c for c in (slug, f"{slug}-1", f"{slug}-face", f"{slug}-face-1") if c in self.icons), slug)
        slug = OWN_SLUGS.get(self.style, {}).get(slug) or self.own.get(slug.replace("-", ""), slug)
        icon = self.icons.get(slug)
        if icon is None:
            return None
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        return trim(rasterize(svg, round(size * 1.1)), size)


def open_sets(work: Path) -> dict[str, SpriteSet]:
    """All styles, fetched where they are not there yet."""
    folders = fetch(work)
    characters = json.loads((folders["noto"] / "chars.json").read_text())
    hexcodes = {slug: code for code, slug in sorted(characters.items(), key=lambda item: -len(item[0]))}
    return {style: SpriteSet(style, folder, hexcodes) for style, folder in folders.items()}


def build(work: Path) -> dict[str, list[Sprite]]:
    """Rasterizes every drawing of every concept and keeps them in `work/sprites.pkl`."""
    sets = open_sets(work)
    sprites: dict[str, list[Sprite]] = {}
    for concept in read_concepts():
        found = [(s.style, slug, s.draw(slug)) for s in sets.values() for slug in concept.slugs]
        sprites[concept.name] = [Sprite(style, slug, np.asarray(im)) for style, slug, im in found if im is not None]
    rows = {name: [(d.style, d.slug, d.rgba) for d in drawings] for name, drawings in sprites.items()}
    (work / "sprites.pkl").write_bytes(pickle.dumps(rows, protocol=5))
    return sprites


def load(work: Path) -> dict[str, list[Sprite]]:
    """Reads what `build` left, building it first where it is not there."""
    path = work / "sprites.pkl"
    if not path.exists():
        return build(work)
    rows = pickle.loads(path.read_bytes())
    return {name: [Sprite(*row) for row in drawings] for name, drawings in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for packages and rasters")
    sprites = build(parser.parse_args().work)
    print(f"{len(sprites)} concepts, {sum(map(len, sprites.values()))} drawings")
    for style in STYLES:
        having = [name for name, drawings in sprites.items() if any(d.style == style for d in drawings)]
        print(f"{style}: {sum(d.style == style for ds in sprites.values() for d in ds)} of {len(having)} concepts")
        if len(having) > 300:
            print("   none of:", ", ".join(sorted(set(sprites) - set(having))))


if __name__ == "__main__":
    main()
