"""What finding costs: the time of ``mmn.find`` over that of plain ``generate``, and of a heatmap over a find.

Both get the same opened pictures, prepare them with the processor, and generate the same tokens greedily; ``find`` also
records, finds the nouns and scores every neuron for each of them. Runs alternate, after a warm-up of both, and the
median of the paired ratios is printed.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

import mmneurons as mmn
from mmneurons.vlm.inputs import PREFIX, PROMPT, write_prompt

__all__ = ["main"]

MAX_NEW_TOKENS = 50
BATCH = 8


@dataclass(frozen=True)
class Paired:
    """Seconds of runs that alternated."""

    plain: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Ours over plain, run by run."""
        return [ours / plain for plain, ours in zip(self.plain, self.ours, strict=True)]

    def __str__(self) -> str:
        ratios = sorted(self.ratios)
        return (
            f"{statistics.median(ratios):.3f}  (runs {ratios[0]:.3f} to {ratios[-1]:.3f}; "
            f"plain {statistics.median(self.plain):.2f} s, find {statistics.median(self.ours):.2f} s)"
        )


def plain(vlm: mmn.VLM, pictures: Sequence[Image.Image], batch_size: int) -> list[str]:
    """Caption pictures as transformers' documentation does."""
    # transformers gives generate no type that a call could be checked against
    model: Any = vlm.model
    processor = vlm.processor
    assert processor is not None
    text = write_prompt(vlm, PROMPT, PREFIX)
    captions = []
    for start in range(0, len(pictures), batch_size):
        batch = list(pictures[start : start + batch_size])
        options: dict = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        made = processor(images=batch, text=[text] * len(batch), **options)
        inputs = {name: tensor.to(vlm.device) for name, tensor in made.items()}
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        rest = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        captions += [PREFIX + end for end in rest]
    return captions


def find(vlm: mmn.VLM, pictures: Sequence[Image.Image], batch_size: int) -> list[mmn.Finding]:
    """Find the neurons behind every noun; one by one by a call for each picture, which reads the weights anew."""
    if batch_size == 1:
        return [mmn.find(vlm, picture, max_new_tokens=MAX_NEW_TOKENS) for picture in pictures]
    return mmn.find(vlm, list(pictures), batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS)


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(vlm: mmn.VLM, pictures: Sequence[Image.Image], batch_size: int, runs: int) -> Paired:
    """Alternate plain and ours, each first as often as the other.

    Raises:
        RuntimeError: they did not say the same, so that their times cannot be compared.
    """
    captions = plain(vlm, pictures, batch_size)
    said = [found.caption for found in find(vlm, pictures, batch_size)]
    if captions != said:
        raise RuntimeError(f"generate says {captions}, find {said}")
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    work = {"plain": lambda: plain(vlm, pictures, batch_size), "ours": lambda: find(vlm, pictures, batch_size)}
    for run in range(runs):
        for name in ("plain", "ours") if run % 2 == 0 else ("ours", "plain"):
            times[name].append(seconds(work[name]))
    return Paired(tuple(times["plain"]), tuple(times["ours"]))


def heatmap_shares(vlm: mmn.VLM, pictures: Sequence[Image.Image]) -> list[tuple[float, float]]:
    """The seconds of the first heatmap of every picture, and the same over the find that it belongs to."""
    times = []
    for picture in [pictures[0], *pictures]:
        start = time.perf_counter()
        found = mmn.find(vlm, picture, max_new_tokens=MAX_NEW_TOKENS)
        took = time.perf_counter() - start
        if found.parts:
            part = found.parts[0]
            drawn = seconds(lambda part=part: part.heatmap(0))
            times.append((drawn, drawn / took))
    if len(times) < 2:
        raise RuntimeError("too few captions hold a noun, so there is no heatmap to draw")
    return times[1:]  # the very first loads colors and font


def bundled(count: int, seed: int = 0) -> list[Image.Image]:
    """Some of the bundled pictures, opened."""
    pictures = list(mmn.demo.pictures())
    random.Random(seed).shuffle(pictures)
    return [Image.open(picture.path).convert("RGB") for picture in pictures[:count]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as for mmn.load")
    parser.add_argument("--pictures", type=int, default=16, help="how many of the bundled pictures")
    parser.add_argument("--runs", type=int, default=5, help="paired runs")
    options = parser.parse_args()
    vlm = mmn.load(options.model)
    pictures = bundled(options.pictures)
    print(f"{vlm}, {len(pictures)} pictures, {options.runs} paired runs, {torch.get_num_threads()} threads")
    print(f"find / generate, one by one       {compare(vlm, pictures, 1, options.runs)}")
    print(f"find / generate, batches of {BATCH:<5} {compare(vlm, pictures, BATCH, options.runs)}")
    maps, shares = zip(*heatmap_shares(vlm, pictures), strict=True)
    print(
        f"heatmap / find                    {statistics.median(shares):.3f}  (pictures {min(shares):.3f} to "
        f"{max(shares):.3f}; {1000 * statistics.median(maps):.0f} ms)"
    )


if __name__ == "__main__":
    main()
