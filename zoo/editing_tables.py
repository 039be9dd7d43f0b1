"""Tables and figures of `python -m zoo.editing`, for `docs/studies/editing-demo-model/`.

`python -m zoo.editing_tables --edits OUT/edits.jsonl --page docs/studies/editing-demo-model` writes `README.md`, the
frontier as SVG, and `edits.csv`, a line for every edit.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmneurons.measures.intervals import Estimate, wilson

__all__ = ["Counts", "main"]

GROUPS = {"": "trained styles", "unseen": "unseen style"}


@dataclass(frozen=True)
class Counts:
    """What one edit did, in captions.

    Attributes:
        entry: its line.
        met: by part (learned, held out, unseen style): whose request is met, of how many.
        still: by style: unchanged captions that say neither word, of how many.
        intruded: by style: of these, those that say the target now, and the picture does not show it.
        recall: by when (before, after): other objects said, of those that are there, in captions that said the source.
    """

    entry: Mapping[str, object]
    met: Mapping[str, tuple[int, int]]
    still: Mapping[str, tuple[int, int]]
    intruded: Mapping[str, tuple[int, int]]
    recall: Mapping[str, tuple[int, int]]


def counted(entry: Mapping) -> Counts:
    """One line of `edits.jsonl`, counted."""
    source, to = entry["source"], entry["to"]
    met, still, intruded = {}, {}, {}
    recall = {"before": (0, 0), "after": (0, 0)}
    for part in ("learned", "held out", "unseen style"):
        own = [one for one in entry["outcomes"][part] if one["said"]]
        met[part] = (sum(one["gone"] and one["there"] for one in own), len(own))
        if part == "learned":
            continue
        for one, shown in zip(entry["outcomes"][part], entry["shown"][part], strict=True):
            others = set(shown) - {source, to}
            for when in recall:
                said, there = recall[when]
                recall[when] = (said + sum(_says(one[when], name) for name in others), there + len(others))
    for style in GROUPS:
        name = f"others {style}".strip()
        pairs = zip(entry["outcomes"][name], entry["shown"][name], strict=True)
        rest = [
            one for one, shown in pairs if not one["said"] and not one["said_target"] and not {source, to} & {*shown}
        ]
        still[style] = (sum(one["before"] == one["after"] for one in rest), len(rest))
        intruded[style] = (sum(one["intruded"] for one in rest), len(rest))
    return Counts(entry, met, still, intruded, recall)


def _says(caption: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}(?:s|es)?\b", caption.lower()) is not None


def _sum(parts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    listed = list(parts)
    return sum(hits for hits, _ in listed), sum(count for _, count in listed)


def _share(part: tuple[int, int], digits: int = 3) -> str:
    return f"{wilson(*part):.{digits}f} of {part[1]}" if part[1] else "–"


def _spread(edits: Sequence[Counts], of: str, style: str, draws: int = 2000) -> Estimate:
    """A share with its interval over pairs of words, which share their other pictures."""
    own = np.array([getattr(edit, of)[style] for edit in edits], dtype=float)
    picked = np.random.default_rng(0).integers(len(own), size=(draws, len(own)))
    shares = own[picked, 0].sum(1) / own[picked, 1].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Estimate(float(own[:, 0].sum() / own[:, 1].sum()), float(low), float(high))


def _grouped(edits: Sequence[Counts], kinds: Sequence[str]) -> dict[str, list[Counts]]:
    groups: dict[str, list[Counts]] = {}
    for edit in edits:
        if edit.entry["kind"] in kinds:
            groups.setdefault(str(edit.entry["name"]), []).append(edit)
    return groups


def _table(groups: Mapping[str, Sequence[Counts]]) -> list[str]:
    lines = [
        "| method | edits | reliability | generality, trained styles | unseen style | unchanged, trained styles "
        "| unseen style | intrusion, trained styles | unseen style | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, edits in groups.items():
        cells = [name, str(len(edits))]
        cells += [_share(_sum(edit.met[part] for edit in edits)) for part in ("learned", "held out", "unseen style")]
        cells += [_share(_sum(edit.still[style] for edit in edits)) for style in GROUPS]
        cells += [_share(_sum(edit.intruded[style] for edit in edits)) for style in GROUPS]
        cells.append(f"{np.median([float(str(edit.entry['seconds'])) for edit in edits]):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _suppressed(edits: Sequence[Counts]) -> list[str]:
    parts = ("learned", "held out", "unseen style")
    lines = [f"- gone, {part}: {_share(_sum(edit.met[part] for edit in edits))} captions" for part in parts]
    for style, name in GROUPS.items():
        lines.append(f"- unchanged, {name}: {_share(_sum(edit.still[style] for edit in edits))} captions")
    before, after = (_sum(edit.recall[when] for edit in edits) for when in ("before", "after"))
    change = np.array(
        [[edit.recall["after"][0] - edit.recall["before"][0], edit.recall["before"][1]] for edit in edits]
    )
    picked = np.random.default_rng(0).integers(len(change), size=(2000, len(change)))
    low, high = np.percentile(change[picked, 0].sum(1) / change[picked, 1].sum(1), [2.5, 97.5])
    added = f"{(after[0] - before[0]) / before[1]:+.3f} [{low:+.3f}, {high:+.3f}]"
    lines.append(
        f"- recall of other objects in captions that said the word: {before[0] / before[1]:.3f} before, "
        f"{after[0] / after[1]:.3f} after, a change of {added} over {before[1]} objects"
    )
    return lines


def _draw(groups: Mapping[str, Sequence[Counts]], path: Path) -> None:
    """Generality against what stays, over both styles."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "mmneurons"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, edits in groups.items():
        still, count = _sum(edit.still[style] for edit in edits for style in GROUPS)
        met, said = _sum(edit.met[part] for edit in edits for part in ("held out", "unseen style"))
        axes.plot(still / count, met / said, "o", markersize=5)
        axes.annotate(name, (still / count, met / said), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("other captions unchanged word for word")
    axes.set_ylabel("captions of new pictures swapped")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=Path, required=True, nargs="+")
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    lines = [line for path in options.edits for line in path.read_text().splitlines()]
    entries = list({entry["key"]: entry for entry in map(json.loads, lines)}.values())
    edits = [counted(entry) for entry in entries]
    options.page.mkdir(parents=True, exist_ok=True)
    swaps, suppressed = _grouped(edits, ["swap"]), _grouped(edits, ["suppress"])
    page = [
        "# Edits of the demo model, measured",
        "",
        "Made by `python -m zoo.editing` and `python -m zoo.editing_tables`.",
        "",
    ]
    page += ["In brackets 95 % intervals (Wilson), behind them the number of captions.", ""]
    page += ["## Swaps", "", *_table(swaps), ""]
    for own in swaps.values():
        page += [
            "The other captions are of the same scenes for every pair. Drawn by pairs of words the intervals are: "
            + ", ".join(
                f"{what} {_spread(own, of, style):.3f} in {name}"
                for what, of in (("unchanged", "still"), ("intrusion", "intruded"))
                for style, name in GROUPS.items()
            )
            + ".",
            "",
        ]
        slow = sum(not edit.entry["converged"] for edit in own)
        page += [f"{slow} of {len(own)} edits did not converge.", ""]
    for own in suppressed.values():
        page += [f"## {len(own)} words that are not to be said", "", *_suppressed(own), ""]
    compared = {**_grouped(edits, ["margin"]), **_grouped(edits, ["rival"])}
    if compared:
        names = {str(edit.entry["key"]): edit for own in compared.values() for edit in own}
        pairs = {(edit.entry["source"], edit.entry["to"]) for edit in names.values()}
        base = [edit for own in swaps.values() for edit in own if (edit.entry["source"], edit.entry["to"]) in pairs]
        shown = {f"least squares, margin {base[0].entry['options']['margin']:g} (default)": base, **compared}
        page += [
            "## The frontier, and rivals",
            "",
            *_table(shown),
            "",
            "![Generality against what stays](frontier.svg)",
            "",
        ]
        _draw(shown, options.page / "frontier.svg")
    (options.page / "README.md").write_text("\n".join(page))
    with (options.page / "edits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        parts = ("learned", "held out", "unseen style")
        head = [
            "kind",
            "name",
            "source",
            "to",
            "seconds",
            "converged",
            *(f"{part}: {what}" for part in parts for what in ("met", "said")),
        ]
        writer.writerow(
            [*head, *(f"{name}: {what}" for name in GROUPS.values() for what in ("unchanged", "intruded", "captions"))]
        )
        for edit in edits:
            row = [edit.entry[name] for name in ("kind", "name", "source", "to")]
            row += [f"{float(str(edit.entry['seconds'])):.1f}", edit.entry["converged"]]
            row += [number for part in parts for number in edit.met[part]]
            row += [
                number
                for style in GROUPS
                for number in (edit.still[style][0], edit.intruded[style][0], edit.still[style][1])
            ]
            writer.writerow(row)


if __name__ == "__main__":
    main()
