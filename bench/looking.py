"""Do the neurons behind a word look at the thing?

On the bundled scenes, whose masks are known, for every object that the demo model names truly: does the map's peak lie
in a box of the object (the pointing game), and how well does the mask at the 95th percentile cover the object
(intersection over union)? Next to the word's neurons: a random neuron, and the average activation of all neurons.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from zoo.score import Lexicon, read_aliases
from zoo.sprites import read_concepts

import mmneurons as mmn
from bench.meaning import mean, table
from mmneurons.heatmaps import Heatmap, mask_iou, pointing_hit
from mmneurons.measures.intervals import resample
from mmneurons.vlm.recording import image_activations

__all__ = ["MAPS", "main"]

RESULTS = Path(__file__).parent / "results" / "looking.md"
RANDOM_NEURONS = 20


def random_neurons(word: mmn.WordFinding) -> list[Heatmap]:
    """The maps of some neurons drawn by chance, each with the sign that it had when the word was said."""
    blocks, width = word.scores.shape
    draw = np.random.default_rng([*word.span, *word.token_ids])
    places = [
        (int(b), int(c))
        for b, c in zip(
            draw.integers(blocks, size=RANDOM_NEURONS), draw.integers(width, size=RANDOM_NEURONS), strict=True
        )
    ]
    signs = [-1 if word.activations[place] < 0 else 1 for place in places]
    rows = image_activations(word.found.vlm, word.found.recording, places).numpy()
    template = word.look(0)
    return [replace(template, values=sign * row) for sign, row in zip(signs, rows, strict=True)]


def average_activation(word: mmn.WordFinding) -> list[Heatmap]:
    """The map of the mean size of all neurons' activations."""
    kept = word.found.recording.image_activations
    assert kept is not None
    return [replace(word.look(0), values=kept.abs().mean(dim=(0, 2)).to(torch.float32).numpy())]


MAPS: dict[str, Callable[[mmn.WordFinding], list[Heatmap]]] = {
    "the best neuron": lambda word: [word.look(0)],
    "mean of the best 10": lambda word: [word.look(first=10)],
    "mean of the best 50": lambda word: [word.look(first=50)],
    "mean of the best 500": lambda word: [word.look(first=500)],
    "a random neuron": random_neurons,
    "average activation": average_activation,
}


def main() -> None:
    """Measure, print and write ``bench/results/looking.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    vlm, lexicon = mmn.load("demo"), Lexicon(read_concepts(), read_aliases())
    scenes = [picture for picture in mmn.demo.pictures() if picture.masks is not None]
    where, hits, overlaps = [], [], []
    for index, (picture, found) in enumerate(zip(scenes, mmn.find(vlm, [p.path for p in scenes]), strict=True)):
        for word in found:
            named, _ = lexicon.said(word.word)
            things = [k for k, name in enumerate(picture.objects) if named == [name]]
            if not things or picture.masks is None:
                continue
            boxes = [picture.boxes[k] for k in things]
            truth = np.any([picture.masks[k] for k in things], axis=0)
            looks = [draw(word) for draw in MAPS.values()]
            where.append(index)
            hits.append([np.mean([pointing_hit(look, boxes) for look in group]) for group in looks])
            overlaps.append([np.mean([mask_iou(look.mask(), truth) for look in group]) for group in looks])
    chance = np.mean([np.any(p.masks, axis=0).mean() / len(p.objects) for p in scenes if p.masks is not None])
    pointing, overlap = resample(where, np.array(hits), mean), resample(where, np.array(overlaps), mean)
    rows = [
        [name, format(pointing.estimate(k), ".2f"), format(overlap.estimate(k), ".3f")] for k, name in enumerate(MAPS)
    ]
    text = (
        "# Where the neurons found look\n\n"
        f"{len(where)} words that name an object of {len(set(where))} of the {len(scenes)} bundled scenes "
        f"truly. A thing covers {chance:.0%} of its picture on average. In brackets 95 % intervals (bootstrap over "
        f"scenes). A random neuron: mean over {RANDOM_NEURONS} drawn for each word.\n\n"
        + table(("map of", "peak in the object's box", "IoU of the 95th percentile's mask"), rows)
        + "\n"
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
