"""What a run costs: the time of ``mmn find`` over that of plain ``generate`` in the same batches, and memory.

Both read the same files, in the same batches, and generate the same tokens; the run also finds the nouns, scores every
neuron for each of them, looks up what the best ones promote, and writes everything down. Loading the model is left out
of both. Memory is the peak of a process of its own for each number of pictures.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mmneurons as mmn
from bench.overhead import BATCH, Paired, plain, seconds
from mmneurons.engines.local import run

__all__ = ["main", "write_pictures"]

PEAK = "peak of the process"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Files that all differ: the bundled pictures, each time cut off a little further at the right."""
    bundled = mmn.demo.pictures()
    paths = []
    for index in range(count):
        picture = Image.open(bundled[index % len(bundled)].path).convert("RGB")
        cut = index // len(bundled)
        path = folder / f"{index:05d}.jpg"
        picture.crop((0, 0, picture.width - cut, picture.height)).save(path, quality=90)
        paths.append(path)
    return paths


def compare(vlm: mmn.VLM, paths: list[Path], runs: int) -> Paired:
    """Alternate plain and a run.

    Raises:
        RuntimeError: they did not say the same, so that their times cannot be compared.
    """
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    said: dict[str, list[str]] = {}

    def opened() -> None:
        said["plain"] = plain(vlm, [Image.open(path).convert("RGB") for path in paths], BATCH)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            said["ours"] = run(vlm, paths, Path(out) / "run").images.collect()["caption"].to_list()

    work = {"plain": opened, "ours": ours}
    for name in work:
        work[name]()
    if said["plain"] != said["ours"]:
        raise RuntimeError(f"generate says {said['plain']}, a run {said['ours']}")
    for index in range(runs):
        for name in ("plain", "ours") if index % 2 == 0 else ("ours", "plain"):
            times[name].append(seconds(work[name]))
    return Paired(tuple(times["plain"]), tuple(times["ours"]))


def peak(folder: Path, count: int) -> float:
    """The peak of the memory of ``mmn find`` over so many pictures, in MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "bench.runs", "--only-memory", str(count), "--folder", str(folder), out]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(rf"{PEAK}: ([\d.]+)", printed)
    if found is None:
        raise RuntimeError(f"no peak in {printed!r}")
    return float(found[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64, help="for the times")
    parser.add_argument("--runs", type=int, default=5, help="paired runs")
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 1000], help="for how many pictures the peaks")
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    vlm = mmn.load("demo")
    if options.only_memory:
        import resource

        run(vlm, options.folder, Path(options.out) / "run", limit=options.only_memory)
        print(f"{PEAK}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), max([options.pictures, *options.memory]))
        if options.runs:
            paired = compare(vlm, paths[: options.pictures], options.runs)
            print(f"mmn find / generate, {options.pictures} pictures, batches of {BATCH}   {paired}", flush=True)
        peaks = {count: peak(Path(folder), count) for count in options.memory}
    for count, most in peaks.items():
        first = next(iter(peaks.values()))
        print(f"peak of memory at {count} pictures   {most:.0f} MiB   ({most / first:.3f} of the first)")


if __name__ == "__main__":
    main()
