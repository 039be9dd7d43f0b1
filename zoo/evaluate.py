"""Object recall and CHAIR of the demo model on fresh scenes, by drawing style.

`python -m zoo.evaluate --work DIR` prints two tables: by style, and by number of things shown. The scenes come from
seeds that training does not use and are changed in color and shape less than training's (`strength` 0.4).
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoo.scenes import Scene, Vocabulary, make_scene
from zoo.score import Lexicon, Tally, read_aliases
from zoo.sprites import HELD_OUT, TRAINED, load, read_concepts

__all__ = ["Captioner", "fresh_scenes", "main"]

STRENGTH = 0.4


class Captioner:
    """The assembled model, greedy, in float32, loaded as any folder of transformers is."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from mmneurons.demo.assembly import CAPTION_START
        from mmneurons.demo.vision_tower import register

        register()
        self.processor = AutoProcessor.from_pretrained(folder)
        # the auto class does not tell types what it loads
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        question = [{"type": "image"}, {"type": "text", "text": "Describe the image in few words."}]
        chat = [{"role": "user", "content": question}]
        self.prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True) + CAPTION_START

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """What follows "An image of", one per picture."""
        inputs = self.processor(images=list(images), text=[self.prompt] * len(images), return_tensors="pt")
        out = self.model.generate(**inputs)
        return self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def fresh_scenes(vocabulary: Vocabulary, count: int, label: str) -> Iterator[Scene]:
    """Scenes of a seed that only evaluation uses."""
    rng = random.Random(f"evaluation/{label}")
    for _ in range(count):
        yield make_scene(vocabulary, rng, strength=STRENGTH)


def row(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings")
    parser.add_argument("--model", type=Path, help="assembled folder; the shipped model when left out")
    parser.add_argument("--scenes", type=int, default=300, help="scenes a style")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--styles", nargs="*", help=f"mixed, {', '.join((*TRAINED, HELD_OUT))}; all when left out")
    parser.add_argument("--log", type=Path, help="write every truth and caption there")
    args = parser.parse_args()

    from mmneurons.demo.assembly import assemble

    captioner = Captioner(args.model or assemble())
    sprites, concepts = load(args.work), read_concepts()
    lexicon = Lexicon(concepts, read_aliases())
    styles = {"mixed": TRAINED, HELD_OUT: (HELD_OUT,), **{style: (style,) for style in TRAINED}}
    by_count: dict[str, dict[int, Tally]] = defaultdict(lambda: defaultdict(Tally))
    log = args.log.open("w") if args.log else None
    print(row(("style", "concepts", "scenes", "recall", "CHAIRi", "CHAIRs", "other words")))
    print(row(("---",) * 7))
    began, done = time.time(), 0
    for label in args.styles or list(styles):
        vocabulary = Vocabulary(concepts, sprites, styles[label])
        scenes = list(fresh_scenes(vocabulary, args.scenes, label))
        tally = Tally()
        for at in range(0, len(scenes), args.batch):
            some = scenes[at : at + args.batch]
            for scene, caption in zip(some, captioner([s.image for s in some]), strict=True):
                said, others = lexicon.said(caption)
                tally.add(said, scene.names, others)
                by_count[label][len(scene.objects)].add(said, scene.names)
                if log:
                    log.write(f"{label}\t{', '.join(scene.names)}\t{caption}\n")
        done += len(scenes)
        name = {"mixed": "trained styles, mixed", HELD_OUT: f"{HELD_OUT} (held out)"}.get(label, label)
        cells = (len(vocabulary.names), tally.captions, tally.recall, tally.chair_i, tally.chair_s, len(tally.others))
        print(row((name, *cells)), flush=True)
    print()
    print(row(("style", *(f"CHAIRs, {n} shown" for n in range(1, 5)))))
    print(row(("---",) * 5))
    for label, tallies in by_count.items():
        print(row((label, *(tallies[n].chair_s for n in range(1, 5)))))
    print(f"\n{(time.time() - began) / max(done, 1):.2f} s a caption, in batches of {args.batch}")


if __name__ == "__main__":
    main()
