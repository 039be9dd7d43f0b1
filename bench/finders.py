"""What a finder costs, in decode steps: the time of one step of generation against the same keys and values.

For every word of some bundled pictures, what lies before it run already: one step without anything of ours, ``total``,
the same derivatives by a full backward pass over the prompt and the caption, ``greedy`` (a replay a handful, five of
them for twenty neurons) and ``contribution``. What lies before a word is run once for all words of a caption; it is
timed by itself.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import mmneurons as mmn
from bench.timing import REPEATS, device, seconds
from mmneurons.finders import Contribution, Finder, Greedy, Target, Total
from mmneurons.finders.objective import log_probability
from mmneurons.vlm.decoding import forced_inputs
from mmneurons.vlm.derivatives import caption_derivatives
from mmneurons.vlm.hooks import evaluating
from mmneurons.vlm.replay import prefix, prefixes_kept

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "finders.md"


def one_word(vlm: mmn.VLM, recording: mmn.Recording, target: Target) -> dict[str, float]:
    """The times of one word, in seconds."""
    before = prefix(vlm, recording, target.step)
    cache = before.cache
    assert cache is not None
    said = forced_inputs(vlm, recording.inputs, recording.token_ids[: target.step + 1].tolist())
    tokens = said["input_ids"]
    length = tokens.shape[1] - 1
    caches = []

    def ready() -> None:
        own = copy.deepcopy(cache)
        own.crop(length - before.length)
        caches.append(own)

    def decode() -> None:
        with evaluating(vlm.model):
            vlm.model(input_ids=tokens[:, -1:], past_key_values=caches.pop(), use_cache=True)

    def scored(finder: Finder) -> Callable[[], object]:
        return lambda: finder(vlm, recording, [target])

    def backward() -> list:
        last = torch.tensor([-1])
        return list(caption_derivatives(vlm, recording, [target.step], [log_probability(target)], last))

    for _ in range(REPEATS + 1):
        ready()
    times = {"a decode step": seconds(decode)}
    times["contribution"] = seconds(scored(Contribution()))
    times["total"] = seconds(scored(Total()))
    times["greedy, 20 by fives"] = seconds(scored(Greedy()))
    times["full backward pass"] = seconds(backward)
    return times


def main() -> None:
    """Measure, print and write ``bench/results/finders.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    vlm = mmn.load(options.model)
    rows, befores = [], []
    for picture in mmn.demo.pictures()[: options.pictures]:
        found = mmn.find(vlm, picture.path, image_budget=0)
        recording = found.recording
        befores.append(seconds(lambda recording=recording: prefix(vlm, recording, len(recording) - 1)))
        with prefixes_kept():
            rows += [one_word(vlm, recording, word.targets[0]) for word in found]
    names = list(rows[0])
    step = np.array([row["a decode step"] for row in rows])
    lines = ["| | seconds a word, median | decode steps, median |", "|---|---|---|"]
    for name in names:
        own = np.array([row[name] for row in rows])
        lines.append(f"| {name} | {np.median(own):.4f} | {np.median(own / step):.2f} |")
    before = float(np.median(befores))
    lines.append(f"| what lies before, once a caption | {before:.4f} | {before / np.median(step):.2f} |")
    text = (
        "# What finders cost\n\n"
        f"{vlm.name}, {len(rows)} words of {len(befores)} bundled pictures, {device()}, {str(vlm.dtype)[6:]}; medians "
        f"of {REPEATS} runs each. What lies before a word (prompt and picture) is run once a caption and then "
        "shared.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
