"""Measures how much less the demo model says of what is not there, for `docs/studies/editing-demo-model.md`.

`python -m zoo.grounding --work DIR --out OUT` captions drawn scenes whose truth is known, learns what
`mmn mitigate hallucination` learns from them, and captions other scenes without the edit and with it. Seven of ten
scenes are in the style that the model was not trained on: there it is wrong most often. What was captioned is kept in
`OUT`, part by part, so that it can be stopped and gone on with. Settings were chosen on scenes of another draw,
`--development`.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

import mmneurons as mmn
from mmneurons.measures.objects import vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.mitigation.grounded import ground_captions
from mmneurons.mitigation.grounding import Settings
from mmneurons.mitigation.hallucination import learn
from mmneurons.mitigation.lesson import Lesson, Shown, Word, read_lesson
from zoo.scenes import Vocabulary, make_scene
from zoo.score import read_aliases
from zoo.sprites import HELD_OUT, TRAINED, load, read_concepts

__all__ = ["main"]

SIDE, STRANGE, PART = 336, 0.7, 400


class Scenes:
    """Scenes of two things, by number."""

    def __init__(self, work: Path) -> None:
        concepts, sprites = read_concepts(), load(work)
        self.known = vocabulary([concept.name for concept in concepts], read_aliases())
        self._styles = {
            strange: Vocabulary(concepts, sprites, (HELD_OUT,) if strange else TRAINED) for strange in (False, True)
        }

    def drawn(self, label: str, first: int, last: int) -> list[Shown]:
        """Some of them. Every thing is in as many scenes as every other, and in one with any."""
        return [self._one(label, number) for number in range(first, last)]

    def _one(self, label: str, number: int) -> Shown:
        rng = random.Random(f"{label}/{number}")
        vocabulary = self._styles[number % 10 < 10 * STRANGE]
        own = vocabulary.names[number % len(vocabulary.names)]
        names = [own, rng.choice([name for name in vocabulary.names if name != own])]
        rng.shuffle(names)
        scene = make_scene(vocabulary, rng, side=SIDE, strength=0.4, names=names)
        image = scene.image
        return Shown(f"{label}-{number}.png", lambda: image, Truth(f"{label}-{number}.png", tuple(scene.names)))


def parts(vlm: mmn.VLM, scenes: Scenes, count: int, folder: Path) -> Iterator[Lesson]:
    """What is learned from, part by part."""
    for first in range(0, count, PART):
        last = min(first + PART, count)
        path = folder / f"lesson-{first}-{last}.pt"
        if not path.exists():
            torch.save(read_lesson(vlm, scenes.drawn("learned", first, last), scenes.known, seed=first), path)
            print(f"learned from: {last} of {count}", flush=True)
        yield torch.load(path, weights_only=False)


def joined(lessons: Iterator[Lesson]) -> Lesson:
    """All parts as one."""
    steps, false, true, captions = [], Counter[str](), Counter[str](), 0
    for lesson in lessons:
        steps += [replace(step, caption=step.caption + captions) for step in lesson.steps]
        false.update({word.name: word.false for word in lesson.words})
        true.update({word.name: word.true for word in lesson.words})
        captions += lesson.captions
    words = tuple(Word(name, false[name], true[name]) for name in sorted({*false, *true}))
    return Lesson(tuple(steps), words, captions)


def main() -> None:
    """Learns and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, see zoo/README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--learned", type=int, default=3200, help="how many scenes are learned from")
    parser.add_argument("--held", type=int, default=1000, help="how many others it is measured on")
    parser.add_argument("--recall", type=float, default=0.02, help="by how much recall may fall")
    parser.add_argument("--development", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    vlm = mmn.load("demo")
    scenes = Scenes(options.work)
    lesson = joined(parts(vlm, scenes, options.learned, options.out))
    print(f"{lesson.false} mentions in {lesson.captions} captions are of what is not there", flush=True)
    edit = learn(vlm, lesson, scenes.known, settings=Settings(recall=0.75 * options.recall))
    edit.save(options.out / "edit.safetensors")
    print(edit, flush=True)
    held = scenes.drawn("development" if options.development else "held out", 0, options.held)
    proof = ground_captions(vlm, edit, held, scenes.known, 0.9, options.recall, lambda done: print(done, flush=True))
    told = {
        "recipe": dict(edit.recipe),
        "figures": {figure.name: figure.as_json() for figure in proof.figures},
        "changed": [asdict(change) for change in proof.changes],
        "refusal": proof.refusal,
    }
    (options.out / "grounded.json").write_text(json.dumps(told, indent=1) + "\n")
    for figure in proof.figures:
        print(f"{figure.name}: {figure.estimate:.3f} of {figure.captions}")
    print(proof.refusal or "can be used")


if __name__ == "__main__":
    main()
