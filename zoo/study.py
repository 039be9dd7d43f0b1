"""Draws the pictures of the study in `docs/studies/`, with their truth.

`python -m zoo.study --work DIR --out PICTURES` draws those that are reported, `--development` others, on which choices
may be made. Every picture shows one to three things, at least one of them one of twelve concepts, so that every concept
is in many pictures, in styles that the demo model was trained on and in one that it never saw.
"""

import argparse
import json
import random
from pathlib import Path

from zoo.pictures import run_lengths
from zoo.scenes import Vocabulary, make_scene
from zoo.sprites import HELD_OUT, TRAINED, load, read_concepts

__all__ = ["CONCEPTS", "main"]

CONCEPTS = ("dog", "cat", "horse", "elephant", "car", "train", "tree", "apple", "pizza", "guitar", "umbrella", "castle")
SIDE = 336
HELD_OUT_SHARE = 0.3


def main() -> None:
    """Draws pictures, and `truth.json` beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, see zoo/README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--development", action="store_true")
    options = parser.parse_args()
    concepts, sprites = read_concepts(), load(options.work)
    label = "study development" if options.development else "study"
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(options.pictures):
        rng = random.Random(f"{label}/{number}")
        styles = (HELD_OUT,) if rng.random() < HELD_OUT_SHARE else TRAINED
        vocabulary = Vocabulary(concepts, sprites, styles)
        first = CONCEPTS[number % len(CONCEPTS)]
        others = rng.sample([name for name in vocabulary.names if name != first], 2)
        second = rng.choice([name for name in CONCEPTS if name != first])
        names = rng.choice([[first], [first, second], [first, others[0]], [first, second, others[1]]])
        rng.shuffle(names)
        scene = make_scene(vocabulary, rng, side=SIDE, strength=0.4, names=names)
        file = f"{number:04d}.jpg"
        scene.image.save(options.out / file, quality=92)
        objects = [{"name": o.name, "box": o.box, "runs": run_lengths(o.mask)} for o in scene.objects]
        entries.append({"file": file, "size": scene.image.size, "objects": objects})
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (options.out / "truth.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
