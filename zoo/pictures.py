"""Makes the pictures that the package bundles, with their truth.

`python -m zoo.pictures --work DIR`. What they show was decided here, before any model saw them; the rest is a seed.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.scenes import Scene, Vocabulary, make_scene
from zoo.sprites import HELD_OUT, Concept, Sprite, open_sets, read_concepts

__all__ = ["PHOTOS", "SCENES", "main", "objects_of", "write_truth"]

TARGET = Path(__file__).parents[1] / "src" / "mmneurons" / "demo" / "pictures"
SIDE = 448
SEED = "bundled pictures"

CREDITS = {
    "noto": "drawings: Noto Emoji, Google, Apache-2.0",
    "noto-v1": "drawings: Noto Emoji (2014-2017), Google, Apache-2.0",
    "fluent": "drawings: Fluent Emoji, Microsoft, MIT",
    "fluent-flat": "drawings: Fluent Emoji Flat, Microsoft, MIT",
    "emojione": "drawings: EmojiOne 2.2.7, CC BY 4.0",
    "fxemoji": "drawings: Firefox OS Emoji, Mozilla, Apache-2.0",
    "twemoji": "drawings: Twemoji, Twitter and contributors, CC BY 4.0",
}

# style, things from no particular order; a thing named twice is there twice
SCENES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("noto", ("dog", "balloon")),
    ("noto", ("cat", "book", "candle")),
    ("noto", ("bicycle", "tree")),
    ("noto", ("apple", "apple", "banana")),
    ("noto-v1", ("elephant",)),
    ("noto-v1", ("train", "cow")),
    ("noto-v1", ("pizza", "tomato", "cheese", "mushroom")),
    ("fluent", ("penguin", "snowman")),
    ("fluent", ("guitar", "drum", "trumpet")),
    ("fluent", ("owl", "moon", "star")),
    ("fluent", ("rabbit", "carrot", "carrot")),
    ("fluent-flat", ("lion", "zebra")),
    ("fluent-flat", ("car", "bus", "traffic light")),
    ("fluent-flat", ("strawberry", "cake", "coffee")),
    ("fluent-flat", ("airplane",)),
    ("emojione", ("horse", "house")),
    ("emojione", ("umbrella", "cloud", "boot")),
    ("emojione", ("dog", "dog", "chicken")),
    ("emojione", ("rocket", "moon", "alien", "star")),
    ("fxemoji", ("whale", "fish", "anchor")),
    (HELD_OUT, ("dog", "bone")),
    (HELD_OUT, ("cat", "mouse")),
    (HELD_OUT, ("hamburger", "fries")),
    (HELD_OUT, ("tractor",)),
    (HELD_OUT, ("giraffe", "elephant", "lion")),
    (HELD_OUT, ("key", "lock")),
    (HELD_OUT, ("pear", "grapes", "pineapple")),
    (HELD_OUT, ("violin", "piano")),
    (HELD_OUT, ("butterfly", "rose", "rose")),
    (HELD_OUT, ("camera", "hat", "glasses", "suitcase")),
    (HELD_OUT, ("helicopter", "castle")),
    (HELD_OUT, ("shark", "turtle")),
)


@dataclass(frozen=True)
class Photo:
    """A photograph of scikit-image's, with boxes drawn by hand."""

    name: str
    credit: str
    objects: tuple[tuple[str, tuple[int, int, int, int]], ...]


PHOTOS = (
    Photo("chelsea", "Stefan van der Walt, CC0, from scikit-image", (("cat", (5, 0, 400, 300)),)),
    Photo(
        "coffee",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0, from scikit-image",
        (("coffee", (174, 16, 403, 310)), ("spoon", (324, 65, 425, 328))),
    ),
    Photo(
        "astronaut",
        "NASA, public domain, from scikit-image",
        (("astronaut", (22, 14, 512, 512)), ("helmet", (281, 344, 512, 512)), ("rocket", (350, 0, 462, 288))),
    ),
    Photo("rocket", "SpaceX, public domain, from scikit-image", (("rocket", (306, 125, 336, 409)),)),
    Photo("camera", "Lav Varshney, CC0, from scikit-image", (("camera", (252, 138, 327, 194)),)),
)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of pixels outside, inside, outside ..., row by row."""
    flat = mask.ravel()
    edges = (np.flatnonzero(np.diff(flat)) + 1).tolist()
    runs = [stop - start for start, stop in zip([0, *edges], [*edges, flat.size], strict=True)]
    return [0, *runs] if flat[0] else runs


def draw(style: str, names: Sequence[str], concepts: dict[str, Concept], sets: dict, number: int) -> Scene:
    """One scene at the bundled size, from drawings rasterized at that size."""
    sprites = {
        name: [
            Sprite(style, slug, np.asarray(image))
            for slug in concepts[name].slugs[:2]  # the plainest drawings stand first
            if (image := sets[style].draw(slug, SIDE)) is not None
        ]
        for name in names
    }
    vocabulary = Vocabulary([concepts[name] for name in dict.fromkeys(names)], sprites, (style,))
    rng = random.Random(f"{SEED}/{number}")
    return make_scene(vocabulary, rng, side=SIDE, strength=0.1, names=names, calm=True)


def objects_of(scene: Scene) -> list[dict[str, object]]:
    """What a scene shows, as `truth.json` has it."""
    return [{"name": o.name, "box": o.box, "runs": run_lengths(o.mask)} for o in scene.objects]


def write_truth(folder: Path, entries: Sequence[Mapping[str, object]]) -> None:
    """Writes `truth.json`, a line for every picture."""
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (folder / "truth.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    """Writes `src/mmneurons/demo/pictures`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    sets = open_sets(parser.parse_args().work)
    concepts = {c.name: c for c in read_concepts()}
    TARGET.mkdir(exist_ok=True)
    entries, used = [], set()
    for number, (style, names) in enumerate(SCENES):
        scene = draw(style, names, concepts, sets, number)
        stem = "-".join(dict.fromkeys(name.replace(" ", "_") for name in names)) if number else "dog"
        stem = f"{stem}-{style}" if stem in used else stem
        used.add(stem)
        scene.image.save(TARGET / f"{stem}.jpg", quality=90)
        entries.append(
            {
                "file": f"{stem}.jpg",
                "kind": "scene",
                "style": style,
                "held_out": style == HELD_OUT,
                "size": scene.image.size,
                "credit": CREDITS[style],
                "objects": objects_of(scene),
            }
        )
    for photo in PHOTOS:
        import skimage.data

        image = Image.fromarray(getattr(skimage.data, photo.name)()).convert("RGB")
        image.save(TARGET / f"photo-{photo.name}.jpg", quality=90)
        objects = [{"name": name, "box": box} for name, box in sorted(photo.objects, key=lambda o: o[1][0] + o[1][2])]
        entries.append(
            {
                "file": f"photo-{photo.name}.jpg",
                "kind": "photo",
                "held_out": True,
                "size": image.size,
                "credit": photo.credit,
                "objects": objects,
            }
        )
    write_truth(TARGET, entries)


if __name__ == "__main__":
    main()
