"""Measures edits of the demo model, for `docs/studies/editing-demo-model.md`.

`python -m zoo.editing --work DIR --out OUT` goes through the edits of `zoo.editing_jobs` and writes a line of JSON for
each to `OUT/edits.jsonl`. Stopped and started again it goes on behind the last whole line. Every edit is learned from
at most eight scenes and measured on others, in styles that the model was trained on and in one that it never saw.
`--development` goes through the sweep of options, on other scenes and other words: choices are made on those.
"""

import argparse
import csv
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import mmneurons as mmn
from mmneurons.edits.methods import make_method
from mmneurons.edits.task import Swap, says
from mmneurons.measures.edit_outcome import Pool
from zoo.editing_jobs import KEPT, jobs, swept, words
from zoo.scenes import Scene, Vocabulary, make_scene, vocabularies

__all__ = ["main"]

SIDE = 336
LEARNED, HELD, STRANGE = 8, 8, 5
"""Of how many scenes whose captions say the word: learned from, held out, and held out in the unseen style."""

OTHERS, OTHERS_STRANGE = 100, 60
"""How many scenes say whether captions stay as they are."""


class Scenes:
    """Scenes, their captions by the unedited model, and what they show."""

    def __init__(self, vlm: mmn.VLM, work: Path, label: str) -> None:
        self._vlm, self._label = vlm, label
        self._styles: dict[str, Vocabulary] = dict(zip(("", "unseen"), vocabularies(work), strict=True))

    def drawn(self, what: str, numbers: Sequence[int], style: str = "", source: str | None = None) -> list[Scene]:
        """Scenes with a word's thing among others, or any."""
        vocabulary, scenes = self._styles[style], []
        for number in numbers:
            rng = random.Random(f"{self._label}/{what}/{style}/{source}/{number}")
            names = None
            if source is not None:
                more = rng.sample([name for name in vocabulary.names if name != source], 2)
                names = rng.choice([[source], [source, more[0]], [source, more[0]], [source, *more]])
                rng.shuffle(names)
            scenes.append(make_scene(vocabulary, rng, side=SIDE, strength=0.4, names=names))
        return scenes

    def captioned(self, scenes: Sequence[Scene]) -> list[mmn.Recording]:
        """What the model says of them."""
        return mmn.record(self._vlm, [scene.image for scene in scenes], image_budget=0) if scenes else []

    def saying(self, what: str, source: str, count: int, style: str = "") -> list[tuple[mmn.Recording, frozenset[str]]]:
        """The first so many scenes whose caption says the word, out of at most three times as many."""
        found: list[tuple[mmn.Recording, frozenset[str]]] = []
        for start in range(0, 3 * count, 8):
            scenes = self.drawn(what, range(start, min(start + 8, 3 * count)), style, source)
            for scene, recording in zip(scenes, self.captioned(scenes), strict=True):
                if says(recording, Swap(source, None)):
                    found.append((recording, frozenset(scene.names)))
            if len(found) >= count:
                break
        return found[:count]


def main() -> None:
    """Measures what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, see zoo/README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--table", type=Path, help="edits.csv of zoo.editing_tables: what is in it is measured already")
    parser.add_argument(
        "--kinds", nargs="*", help="swap, suppress, suppress rival, margin, rival, or sweep: …; all by default"
    )
    options = parser.parse_args()
    vlm = mmn.load("demo")
    scenes = Scenes(vlm, options.work, "editing development" if options.development else "editing")
    names = words(vlm)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "edits.jsonl"
    done = {json.loads(own)["key"] for own in path.read_text().splitlines()} if path.exists() else set()
    if options.table is not None:
        with options.table.open(newline="") as file:
            for row in csv.DictReader(file):
                done.add(json.dumps([row["kind"], row["name"], row["source"], row["to"] or None]))
    kept = scenes.captioned(scenes.drawn("kept", range(KEPT)))
    pools, shown = {}, {}
    for style, count in (("", OTHERS), ("unseen", OTHERS_STRANGE)):
        own = scenes.drawn("others", range(count), style)
        pools[style], shown[style] = Pool(vlm, scenes.captioned(own)), [sorted(scene.names) for scene in own]
    of_word: dict[str, dict[str, list[tuple[mmn.Recording, frozenset[str]]]]] = {}
    for job in (swept if options.development else jobs)(names):
        if job.key in done or (options.kinds and job.kind not in options.kinds):
            continue
        if job.source not in of_word:
            of_word[job.source] = {
                "learned": scenes.saying("learned", job.source, LEARNED),
                "held out": scenes.saying("held out", job.source, HELD),
                "unseen style": scenes.saying("held out", job.source, STRANGE, "unseen"),
            }
        own = of_word[job.source]
        if not own["learned"]:
            continue
        began = time.perf_counter()
        keep = [one for one in kept[: job.kept] if not says(one, Swap(job.source, job.to))]
        method = make_method(job.method, job.options)
        learned = [one for one, _ in own["learned"]]
        edit = mmn.edit(vlm, job.source, job.to, pictures=learned, keep=keep, bundled=not job.kept, method=method)
        seconds = time.perf_counter() - began
        found = {name: Pool(vlm, [one for one, _ in part]).outcomes(edit) for name, part in own.items()}
        found |= {f"others {style}".strip(): pools[style].outcomes(edit) for style in pools}
        there = {name: [sorted(names) for _, names in part] for name, part in own.items()}
        there |= {f"others {style}".strip(): shown[style] for style in pools}
        entry = {
            "key": job.key,
            **asdict(job),
            "options": edit.recipe["options"],
            "seconds": seconds,
            "learned from": len(own["learned"]),
            "wanted": edit.recipe["wanted"],
            "converged": edit.converged,
            "outcomes": {name: [asdict(one) for one in part] for name, part in found.items()},
            "shown": there,
        }
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        told = [sum(one.swapped for one in found[name]) for name in own]
        rest = [one for one in found["others"] if not one.said and not one.said_target]
        print(
            f"{job.kind} {job.name}: {job.source} → {job.to}: "
            + ", ".join(f"{hits}/{len(found[name])} {name}" for hits, name in zip(told, own, strict=True))
            + f", {sum(one.unchanged for one in rest)}/{len(rest)} others unchanged, {seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
