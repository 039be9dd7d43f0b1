"""Scenes: one to four drawn things on a background, with their true names, boxes and masks, and a caption.

Everything comes from one `random.Random`, so a seed gives the same scene again.
"""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from zoo.sprites import HELD_OUT, TRAINED, Concept, Sprite, load, read_concepts, threshold

__all__ = ["GRID", "Scene", "SceneObject", "Vocabulary", "coverage", "describe", "make_scene", "vocabularies"]

GRID = 7
COUNTS = ("", "", "two", "three", "four")
# Longer side of an object as a share of the picture's side, by number of objects.
EXTENT = {1: (0.42, 0.92), 2: (0.36, 0.58), 3: (0.31, 0.47), 4: (0.29, 0.42)}
MIN_VISIBLE = 0.62
# lemminflect would also give "fishes" and "pufferfishes".
SAME_PLURAL = {"fish", "pufferfish"}


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    Attributes:
        name: Its concept's name.
        style: The drawing's style.
        box: (x0, y0, x1, y1) of what is seen of it, in pixels, right and lower edge excluded.
        mask: (side, side) bool, what is seen of it.
    """

    name: str
    style: str
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture with its truth.

    Attributes:
        image: RGB picture, square.
        objects: From left to right by the middle of their boxes.
    """

    image: Image.Image
    objects: tuple[SceneObject, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct names, in the order of `objects`."""
        return tuple(dict.fromkeys(o.name for o in self.objects))


class Vocabulary:
    """Concepts with their drawings in the wanted styles, and how their names are said."""

    def __init__(
        self, concepts: Sequence[Concept], sprites: Mapping[str, Sequence[Sprite]], styles: Sequence[str]
    ) -> None:
        self.concepts = {c.name: c for c in concepts}
        # name -> style -> drawings; drawn style first, so that a set with many drawings of a thing weighs no more.
        self.drawings: dict[str, dict[str, list[Sprite]]] = {}
        for concept in concepts:
            by_style: dict[str, list[Sprite]] = {}
            for sprite in sprites[concept.name]:
                if sprite.style in styles:
                    by_style.setdefault(sprite.style, []).append(sprite)
            if by_style:
                self.drawings[concept.name] = by_style
        self.names = tuple(self.drawings)

    def pick(self, name: str, rng: random.Random) -> Sprite:
        """A drawing of the thing: first a style, then one of its drawings."""
        by_style = self.drawings[name]
        return rng.choice(by_style[rng.choice(list(by_style))])


def vocabularies(work: Path) -> tuple[Vocabulary, Vocabulary]:
    """Concepts with their drawings in the trained styles, and in the held-out one."""
    sprites, concepts = load(work), read_concepts()
    return Vocabulary(concepts, sprites, TRAINED), Vocabulary(concepts, sprites, (HELD_OUT,))


def plural(name: str) -> str:
    """Plural of a singular name; only its last word changes."""
    from lemminflect import getInflection

    if name in SAME_PLURAL:
        return name
    head, _, last = name.rpartition(" ")
    return f"{head} {next(iter(getInflection(last, tag='NNS')))}".strip()


def phrase(concept: Concept, count: int, color: str | None) -> str:
    """How a thing is said: "a dog", "two red apples", "bread", "scissors"."""
    words = f"{color} " if color else ""
    if count > 1:
        return f"{COUNTS[count]} {words}{plural(concept.name)}"
    words += concept.name
    if concept.number != "count":
        return words
    return f"{article(words)} {words}"


def article(words: str) -> str:
    """Chooses "an" before a vowel's sound; of the concepts only "unicorn" and "ufo" sound otherwise than spelled."""
    return "an" if words[0] in "aeiou" and not words.startswith(("uni", "ufo")) else "a"


def describe(scene: Scene, concepts: Mapping[str, Concept], rng: random.Random, colors: float = 0.1) -> str:
    """A true caption to follow "An image of": things from left to right, counted, sometimes with a color.

    Args:
        scene: What to describe.
        concepts: By name, for how a name is counted.
        rng: Source of the wording.
        colors: Probability that a caption says colors, of things that clearly have one.
    """
    with_colors = rng.random() < colors
    phrases = []
    for name in scene.names:
        same = [o for o in scene.objects if o.name == name]
        seen = {color_of(scene.image, o.mask) if with_colors else None for o in same}
        phrases.append(phrase(concepts[name], len(same), seen.pop() if len(seen) == 1 else None))
    if len(phrases) == 1:
        return phrases[0]
    *first, last = phrases
    joint = rng.choices(("and", "next to", "with"), (0.7, 0.15, 0.15))[0]
    if joint == "and" or len(first) == 1:
        return f"{', '.join(first)} {joint} {last}"
    return f"{', '.join(first[:-1])} and {first[-1]} {joint} {last}"


def color_of(image: Image.Image, mask: np.ndarray, share: float = 0.75) -> str | None:
    """The color's name if at least `share` of the seen pixels have it, else None."""
    hue, saturation, value = (c[mask] for c in np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float32), 2, 0))
    hue, saturation, value = hue * (360 / 255), saturation / 255, value / 255
    vivid = (saturation > 0.55) & (value > 0.4)
    rules = {
        "red": vivid & ((hue < 12) | (hue > 345)),
        "yellow": vivid & (hue > 42) & (hue < 66),
        "green": vivid & (hue > 80) & (hue < 165),
        "blue": vivid & (hue > 192) & (hue < 250),
        "purple": vivid & (hue > 262) & (hue < 300),
        "black": value < 0.22,
        "white": (saturation < 0.08) & (value > 0.92),
    }
    return next((color for color, hit in rules.items() if hit.mean() > share), None)


def random_color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def noise(rng: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).random(shape, dtype=np.float32)


def background(rng: random.Random, side: int, calm: bool = False) -> Image.Image:
    """Plain, gradient, soft texture, stripes or a clutter of shapes, at a random contrast; pale ones when `calm`."""
    kind = rng.choices(("plain", "gradient", "texture", "stripes", "clutter"), (0.25, 0.2, 0.2, 0.1, 0.25))[0]
    base = Image.new("RGB", (side, side), random_color(rng) if rng.random() < 0.7 else (255, 255, 255))
    if kind == "gradient":
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((side, side))
        base = Image.composite(Image.new("RGB", base.size, random_color(rng)), base, ramp)
    elif kind == "texture":
        cells = rng.choice((4, 8, 16, 48))
        patches = Image.fromarray((noise(rng, (cells, cells, 3)) * 255).astype(np.uint8))
        base = Image.blend(base, patches.resize(base.size, Image.Resampling.BICUBIC), rng.uniform(0.2, 0.8))
    elif kind == "stripes":
        draw, color, step = ImageDraw.Draw(base), random_color(rng), rng.randint(side // 20, side // 5)
        slant = rng.uniform(-1, 1) * side
        for x in range(-side, 2 * side, 2 * step):
            draw.line((x, 0, x + slant, side), fill=color, width=step)
    elif kind == "clutter":
        draw = ImageDraw.Draw(base)
        for _ in range(rng.randint(4, 18)):
            x, y, color = rng.randrange(side), rng.randrange(side), random_color(rng)
            w, h = rng.randint(side // 20, side // 3), rng.randint(side // 20, side // 3)
            shape = rng.randrange(4)
            if shape == 0:
                draw.ellipse((x - w, y - h, x + w, y + h), fill=color)
            elif shape == 1:
                draw.rectangle((x - w, y - h, x + w, y + h), fill=color)
            elif shape == 2:
                draw.line((x - w, y - h, x + w, y + h), fill=color, width=rng.randint(1, side // 25))
            else:
                draw.polygon([(x + rng.randint(-w, w), y + rng.randint(-h, h)) for _ in range(3)], fill=color)
        if rng.random() < 0.6:
            base = base.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 6) * side / 224))
        base = Image.blend(base, Image.new("RGB", base.size, (200, 200, 200)), rng.uniform(0, 0.6))
    if calm:
        return Image.blend(base, Image.new("RGB", base.size, (255, 255, 255)), 0.65)
    if rng.random() < 0.4:
        grain = (noise(rng, (side, side, 1)) - 0.5) * rng.uniform(5, 40)
        base = Image.fromarray((np.asarray(base, dtype=np.float32) + grain).clip(0, 255).astype(np.uint8))
    return base


def recolor(rgb: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Changes what tells drawing styles apart and leaves what tells things apart."""
    if rng.random() < 0.8 * strength:
        rgb = ImageEnhance.Brightness(rgb).enhance(1 + strength * rng.uniform(-0.35, 0.35))
        rgb = ImageEnhance.Contrast(rgb).enhance(1 + strength * rng.uniform(-0.4, 0.4))
        rgb = ImageEnhance.Color(rgb).enhance(1 + strength * rng.uniform(-0.6, 0.6))
    if rng.random() < 0.5 * strength:
        turn = int(rng.gauss(0, 7)) % 256
        hue, saturation, value = rgb.convert("HSV").split()
        rgb = Image.merge("HSV", (hue.point([(h + turn) % 256 for h in range(256)]), saturation, value)).convert("RGB")
    if rng.random() < 0.2 * strength:
        rgb = rgb.quantize(rng.randint(3, 10)).convert("RGB")
    if rng.random() < 0.04 * strength:
        rgb = rgb.convert("L").convert("RGB")
    return rgb


def dress(sprite: Sprite, extent: float, rng: random.Random, strength: float) -> Image.Image:
    """The drawing as it will be pasted: turned, flipped, stretched, recolored, its longer side `extent` pixels."""
    image = Image.fromarray(sprite.rgba)
    scale = extent / max(image.size)
    stretch = 1 + strength * rng.uniform(-0.2, 0.2)
    size = max(4, round(image.width * scale * min(stretch, 1))), max(4, round(image.height * scale / max(stretch, 1)))
    image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    alpha = image.getchannel("A")
    image = recolor(image.convert("RGB"), rng, strength)
    image.putalpha(alpha)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3 * strength:
        shear = rng.uniform(-0.25, 0.25)
        width = image.width + round(abs(shear) * image.height)
        shift = shear * image.height if shear > 0 else 0
        image = image.transform(
            (width, image.height), Image.Transform.AFFINE, (1, shear, -shift, 0, 1, 0), Image.Resampling.BILINEAR
        )
    if rng.random() < 0.6:
        image = image.rotate(rng.gauss(0, 14) * max(strength, 0.5), Image.Resampling.BILINEAR, expand=True)
    if rng.random() < 0.15 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    box = image.getchannel("A").point(threshold(100)).getbbox()
    return image.crop(box) if box else image


def choose_names(vocabulary: Vocabulary, count: int, rng: random.Random) -> list[str]:
    """`count` names; one in four scenes of several things shows two or more of a kind."""
    names = rng.sample(vocabulary.names, count)
    if count > 1 and rng.random() < 0.25 and vocabulary.concepts[names[0]].number == "count":
        for k in range(1, rng.randint(2, count)):
            names[k] = names[0]
    return names


def place(sizes: Sequence[tuple[int, int]], side: int, rng: random.Random) -> list[tuple[int, int]] | None:
    """Upper left corners such that boxes overlap by at most a fifth of the smaller; None where no place is found."""
    corners: list[tuple[int, int]] = []
    for w, h in sizes:
        for _ in range(25):
            out = 0.06
            x = round(rng.uniform(-out * w, side - w + out * w))
            y = round(rng.uniform(-out * h, side - h + out * h))
            allowed = rng.choice((0.0, 0.05, 0.2))
            if all(
                max(0, min(x + w, x2 + w2) - max(x, x2)) * max(0, min(y + h, y2 + h2) - max(y, y2))
                <= allowed * min(w * h, w2 * h2)
                for (x2, y2), (w2, h2) in zip(corners, sizes, strict=False)
            ):
                corners.append((x, y))
                break
        else:
            return None
    return corners


def make_scene(
    vocabulary: Vocabulary,
    rng: random.Random,
    count: int | None = None,
    side: int = 224,
    strength: float = 1.0,
    names: Sequence[str] | None = None,
    calm: bool = False,
) -> Scene:
    """Draws a scene.

    Args:
        vocabulary: Things to draw from.
        rng: Source of every choice.
        count: Number of things, 1 to 4; drawn when None.
        side: Side of the picture in pixels.
        strength: How far colors and shapes are changed, 0 (hardly) to 1 (training).
        names: The things, drawn when None.
        calm: Pale backgrounds only.
    """
    if count is None:
        count = len(names) if names else rng.choices((1, 2, 3, 4), (0.25, 0.3, 0.25, 0.2))[0]
    chosen = list(names) if names else choose_names(vocabulary, count, rng)
    while True:
        scene = compose(vocabulary, chosen, rng, side, strength, calm)
        if scene is not None:
            return scene


def compose(
    vocabulary: Vocabulary, names: Sequence[str], rng: random.Random, side: int, strength: float, calm: bool
) -> Scene | None:
    """One try; None where a thing would be hidden too far."""
    picked: dict[str, Sprite] = {}
    layers = []
    for name in names:
        sprite = picked[name] if name in picked and rng.random() < 0.8 else vocabulary.pick(name, rng)
        picked[name] = sprite
        layers.append((sprite, dress(sprite, side * rng.uniform(*EXTENT[len(names)]), rng, strength)))
    corners = place([layer.size for _, layer in layers], side, rng)
    if corners is None:
        return None
    canvas = background(rng, side, calm)
    masks: list[np.ndarray] = []
    areas = []
    shadows = rng.random() < 0.3
    for (_, layer), corner in zip(layers, corners, strict=True):
        alpha = Image.new("L", (side, side))
        alpha.paste(layer.getchannel("A"), corner)
        if shadows:
            reach = max(1, side // 60)
            shade = Image.new("L", alpha.size)
            shade.paste(alpha.point([a * 2 // 5 for a in range(256)]), (reach, reach))
            canvas.paste((20, 20, 30), mask=shade.filter(ImageFilter.GaussianBlur(reach)))
        canvas.paste(layer.convert("RGB"), corner, layer.getchannel("A"))
        mask = np.asarray(alpha) > 100
        masks = [m & ~mask for m in masks] + [mask]
        areas.append(int((np.asarray(layer.getchannel("A")) > 100).sum()))
    if any(mask.sum() < max(MIN_VISIBLE * area, 30) for mask, area in zip(masks, areas, strict=True)):
        return None
    objects = [
        SceneObject(name, sprite.style, box_of(mask), mask)
        for name, (sprite, _), mask in zip(names, layers, masks, strict=True)
    ]
    objects.sort(key=lambda o: o.box[0] + o.box[2])
    return Scene(finish(canvas, rng, strength), tuple(objects))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def finish(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """What a camera or a file does to the whole picture."""
    if rng.random() < 0.4 * strength:
        image = recolor(image, rng, 0.5 * strength)
    if rng.random() < 0.15 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.2 * strength:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(35, 95))
        image = Image.open(file).convert("RGB")
    return image


def coverage(mask: np.ndarray, grid: int = GRID) -> np.ndarray:
    """(grid, grid) share of each cell that a (side, side) mask covers; `side` must be a multiple of `grid`."""
    cell = mask.shape[0] // grid
    return mask.reshape(grid, cell, grid, cell).mean((1, 3))
