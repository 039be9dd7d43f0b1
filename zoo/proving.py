"""Makes edits of the demo model, and pictures to prove them on, for `mmn measure --edit` in `docs/studies/`.

`python -m zoo.proving --work DIR --out OUT` takes the first pairs of words of `zoo.editing_jobs` and writes for each a
folder of the scenes that its edit is learned from, `OUT/learned/01-flower`, and the edit, `OUT/edits/01-flower-sock
.safetensors`; `OUT/kept`, the scenes that must stay; and `OUT/others`, scenes that no edit has seen, with their
truth: of every source some, and some of any things. Stopped and started again it goes on.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmneurons as mmn
from mmneurons.edits.task import Swap, says
from zoo.editing import LEARNED, Scenes
from zoo.editing_jobs import KEPT, pairs, words
from zoo.scenes import Scene
from zoo.study import write_pictures

__all__ = ["main"]

STYLES = ("", "unseen")


def main() -> None:
    """Writes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, see zoo/README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--shown", type=int, nargs=2, default=(2, 1), help="other scenes of a source, trained, unseen")
    parser.add_argument("--others", type=int, default=50, help="other scenes of any things")
    options = parser.parse_args()
    vlm = mmn.load("demo")
    scenes = Scenes(vlm, options.work, "proving")
    chosen = pairs(words(vlm))[: options.edits]
    sources = [source for source, _ in chosen]
    if not (options.out / "others").exists():
        write_pictures(options.out / "others", _others(scenes, sources, options.shown, options.others))
    (options.out / "edits").mkdir(exist_ok=True)
    staying = scenes.drawn("kept", range(KEPT))
    (options.out / "kept").mkdir(exist_ok=True)
    for place, scene in enumerate(staying):
        scene.image.save(options.out / "kept" / f"{place:03d}.png")
    kept: list[mmn.Recording] = []
    for number, (source, to) in enumerate(chosen, 1):
        path = options.out / "edits" / f"{number:02d}-{source}-{to}.safetensors"
        if path.exists():
            continue
        kept = kept or scenes.captioned(staying)
        learned = scenes.drawn("learned", range(LEARNED), source=source)
        folder = options.out / "learned" / f"{number:02d}-{source}"
        folder.mkdir(parents=True, exist_ok=True)
        for place, scene in enumerate(learned):
            scene.image.save(folder / f"{number:02d}-{place}.png")
        keep = [one for one in kept if not says(one, Swap(source, None))]
        own = [scene.image for scene in learned]
        edit = mmn.edit(vlm, source, to, pictures=own, keep=keep, bundled=False)
        edit.save(path)
        print(f"{path.name}: converged {edit.converged}, kept changed {edit.kept_changed}", flush=True)


def _others(scenes: Scenes, sources: Sequence[str], shown: Sequence[int], others: int) -> Iterator[Scene]:
    """Scenes of every source, and of any things, in random order."""
    found = [
        scene
        for source in sources
        for style, count in zip(STYLES, shown, strict=True)
        for scene in scenes.drawn("others", range(count), style, source)
    ]
    found += scenes.drawn("others", range(others))
    random.Random("proving").shuffle(found)
    yield from found


if __name__ == "__main__":
    main()
