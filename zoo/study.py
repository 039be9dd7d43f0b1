"""Draws the pictures of the study in `docs/studies/`, with their truth.

`python -m zoo.study --work DIR --out PICTURES` draws those that are reported, `--development` others, on which choices
may be made. Every picture shows one to three things, at least one of them one of twelve concepts, so that every concept
is in many pictures, in styles that the demo model was trained on and in one that it never saw.
"""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path

from zoo.pictures import objects_of, write_truth
from zoo.scenes import Scene, make_scene, vocabularies

__all__ = ["CONCEPTS", "main", "write_pictures"]

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
    trained, strange = vocabularies(options.work)
    label = "study development" if options.development else "study"

    def drawn(number: int) -> Scene:
        rng = random.Random(f"{label}/{number}")
        vocabulary = strange if rng.random() < HELD_OUT_SHARE else trained
        first = CONCEPTS[number % len(CONCEPTS)]
        others = rng.sample([name for name in vocabulary.names if name != first], 2)
        second = rng.choice([name for name in CONCEPTS if name != first])
        names = rng.choice([[first], [first, second], [first, others[0]], [first, second, others[1]]])
        rng.shuffle(names)
        return make_scene(vocabulary, rng, side=SIDE, strength=0.4, names=names)

    write_pictures(options.out, map(drawn, range(options.pictures)))


def write_pictures(folder: Path, scenes: Iterable[Scene]) -> None:
    """Writes scenes into a folder, and `truth.json` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, scene in enumerate(scenes):
        file = f"{number:04d}.jpg"
        scene.image.save(folder / file, quality=92)
        entries.append({"file": file, "size": scene.image.size, "objects": objects_of(scene)})
    write_truth(folder, entries)


if __name__ == "__main__":
    main()
