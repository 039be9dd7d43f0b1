"""Draws the scenes on which `docs/studies/` says how much less the demo model says of what is not there.

`python -m zoo.grounding --work DIR --out PICTURES` draws scenes of two things with their truth, for
`mmn mitigate hallucination`. Seven of ten are in the style that the model was not trained on: there it is wrong most
often. Settings were chosen on scenes of another draw, `--development`.
"""

import argparse
import random
from pathlib import Path

from zoo.scenes import Scene, make_scene, vocabularies
from zoo.study import SIDE, write_pictures

__all__ = ["main"]

STRANGE = 0.7


def main() -> None:
    """Draws pictures, and `truth.json` beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, see zoo/README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--development", action="store_true")
    options = parser.parse_args()
    trained, strange = vocabularies(options.work)
    label = "grounding development" if options.development else "grounding"

    def drawn(number: int) -> Scene:
        rng = random.Random(f"{label}/{number}")
        vocabulary = strange if rng.random() < STRANGE else trained
        # one thing in turn, so that none is rare, beside any other
        own = vocabulary.names[number % len(vocabulary.names)]
        names = [own, rng.choice([name for name in vocabulary.names if name != own])]
        rng.shuffle(names)
        return make_scene(vocabulary, rng, side=SIDE, strength=0.4, names=names)

    write_pictures(options.out, map(drawn, range(options.pictures)))


if __name__ == "__main__":
    main()
