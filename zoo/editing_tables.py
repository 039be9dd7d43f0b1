"""Tables and figures of `python -m zoo.editing`, for `docs/studies/editing-demo-model/`.

`python -m zoo.editing_tables --edits OUT/edits.jsonl --page PAGE` adds to `PAGE/edits.csv`, a line
for every edit, and writes `README.md` and the frontier as SVG from all lines there are.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmneurons.edits.task import Swap
from mmneurons.measures.intervals import wilson
from zoo.editing_jobs import defaults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["main"]

STYLES = {"trained": "others", "unseen": "others unseen"}
SWEEP = "sweep: "
PARTS = ("learned", "held out", "unseen style")
COUNTED = (
    *(f"{part}: {what}" for part in PARTS for what in ("met", "said")),
    *(f"{style}: {what}" for style in STYLES for what in ("unchanged", "intruded", "captions")),
    *(f"other objects: {what}" for what in ("there", "said before", "said after")),
    *(f"articles: {what}" for what in ("there", "fit")),
)
NAMED = ("kind", "name", "source", "to", "seconds", "converged")

Row = Mapping[str, str]


def counted(entry: Mapping) -> dict[str, str]:
    """One line of `edits.jsonl`, counted."""
    source, to = entry["source"], entry["to"]
    found, swap = dict.fromkeys(COUNTED, 0), Swap(source, to)
    for part in PARTS:
        own = [one for one in entry["outcomes"][part] if one["said"]]
        found[f"{part}: met"] = sum(one["gone"] and one["there"] for one in own)
        found[f"{part}: said"] = len(own)
        if part == "learned":
            continue
        articles = [swap.articles_in(one["after"], one.get("begun", 0)) for one in own if one["gone"] and one["there"]]
        found["articles: there"] += sum(bool(fits) for fits in articles)
        found["articles: fit"] += sum(bool(fits) and all(fits) for fits in articles)
        for one, shown in zip(entry["outcomes"][part], entry["shown"][part], strict=True):
            others = {*shown} - {source, to}
            found["other objects: there"] += len(others)
            for when in ("before", "after"):
                found[f"other objects: said {when}"] += sum(_says(one[when], name) for name in others)
    for style, name in STYLES.items():
        for one, shown in zip(entry["outcomes"][name], entry["shown"][name], strict=True):
            if not one["said"] and not one["said_target"] and not {source, to} & {*shown}:
                found[f"{style}: captions"] += 1
                found[f"{style}: unchanged"] += one["before"] == one["after"]
                found[f"{style}: intruded"] += one["intruded"]
    named = {name: entry[name] for name in ("kind", "name", "source", "converged")}
    told = {**named, "to": to or "", "seconds": f"{entry['seconds']:.1f}", **found}
    return {name: str(value) for name, value in told.items()}


def _says(caption: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}(?:s|es)?\b", caption.lower()) is not None


def _sum(rows: Iterable[Row], name: str) -> int:
    return sum(int(row[name]) for row in rows)


def _share(rows: Sequence[Row], hits: str, of: str) -> str:
    count = _sum(rows, of)
    return f"{wilson(_sum(rows, hits), count):.3f} of {count}" if count else "–"


def _by_words(rows: Sequence[Row], hits: str, of: str, less: str | None = None) -> str:
    """A share, or a difference of shares, with its interval over words: their other pictures are the same."""
    top = np.array([int(row[hits]) - (int(row[less]) if less else 0) for row in rows], dtype=float)
    count = np.array([int(row[of]) for row in rows], dtype=float)
    if not count.sum():
        return "–"
    picked = np.random.default_rng(0).integers(len(rows), size=(2000, len(rows)))
    low, high = np.percentile(top[picked].sum(1) / count[picked].sum(1), [2.5, 97.5])
    return f"{top.sum() / count.sum():.3f} [{low:.3f}, {high:.3f}]"


def _named(rows: Sequence[Row], *kinds: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] in kinds:
            groups.setdefault(row["name"], []).append(row)
    return groups


RECALL = tuple(f"other objects: {what}" for what in ("said after", "there", "said before"))


def _suppressing(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    heads = ("words", "gone, learned from", "held out", "unseen style")
    more = ("unchanged, trained styles", "unseen style", "change of recall")
    return _lines((*heads, *more), groups, lambda rows: [*_styled(rows, "unchanged"), _by_words(rows, *RECALL)])


def _table(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    heads = ("edits", "reliability", "generality, trained styles", "unseen style")
    more = ("unchanged, trained styles", "unseen style", "intrusion, trained styles", "unseen style")
    return _lines((*heads, *more), groups, lambda rows: [*_styled(rows, "unchanged"), *_styled(rows, "intruded")])


def _styled(rows: Sequence[Row], what: str) -> list[str]:
    return [_share(rows, f"{style}: {what}", f"{style}: captions") for style in STYLES]


def _lines(
    heads: Sequence[str], groups: Mapping[str, Sequence[Row]], more: Callable[[Sequence[Row]], list[str]]
) -> list[str]:
    """A line for each method: how often the request was met, what else is asked for, and how long it took."""
    lines = [" | ".join(("| method", *heads, "seconds |")), "|---" * (len(heads) + 2) + "|"]
    for name, rows in groups.items():
        met = [_share(rows, f"{part}: met", f"{part}: said") for part in PARTS]
        seconds = np.median([float(row["seconds"]) for row in rows])
        lines.append("| " + " | ".join([name, str(len(rows)), *met, *more(rows), f"{seconds:.0f}"]) + " |")
    return lines


def _swaps(rows: Sequence[Row]) -> list[str]:
    spread = ", ".join(
        f"{what} {_by_words(rows, f'{style}: {what}', f'{style}: captions')} in {style} styles"
        for what in ("unchanged", "intruded")
        for style in STYLES
    )
    articled = [row for row in rows if row.get("articles: there")]
    slow = sum(row["converged"] != "True" for row in rows)
    return [
        f"The other captions are of the same scenes for every pair. With intervals over pairs of words: {spread}.",
        "",
        'Articles do not count. Where "a" or "an" stands right before the target in a swapped caption of a new picture '
        f"it fits in {_share(articled, 'articles: fit', 'articles: there')}, over {len(articled)} pairs of words.",
        "",
        f"{slow} of {len(rows)} edits did not converge: not every token that is wanted has p ≥ 0.9.",
        "",
    ]


def _suppressed(rows: Sequence[Row]) -> list[str]:
    lines = [f"- gone, {part}: {_share(rows, f'{part}: met', f'{part}: said')} captions" for part in PARTS]
    lines += [f"- unchanged, {s}: {_share(rows, f'{s}: unchanged', f'{s}: captions')} captions" for s in STYLES]
    after, there, before = RECALL
    lines.append(
        f"- recall of other objects in captions that said the word: {_by_words(rows, before, there)} before, "
        f"{_by_words(rows, after, there)} after, a change of {_by_words(rows, after, there, before)} over words"
    )
    return lines


def _draw(groups: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Generality against what stays, over both styles."""
    figure, axes = _axes()
    for number, (name, rows) in enumerate(groups.items()):
        # names beside the points would cover each other; ten colors are there
        axes.plot(*_place(rows), "os^"[number // 10 % 3], markersize=5, color=f"C{number}", label=name)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    _save(figure, axes, path)


def _draw_swept(kinds: Mapping[str, Mapping[str, Sequence[Row]]], path: Path) -> None:
    """The same for all that was tried of every method; what is the default has a ring."""
    figure, axes = _axes()
    for number, (kind, groups) in enumerate(kinds.items()):
        places = [_place(rows) for rows in groups.values()]
        # methods are tried on their own pairs of words, more or fewer
        title = kind.removeprefix(SWEEP)
        label = f"{title}, pairs of words: {len(_pairs(groups))}"
        axes.plot(*zip(*places, strict=True), "o", markersize=4, color=f"C{number}", label=label)
        for name in groups.keys() & {*defaults(title)}:
            axes.plot(*_place(groups[name]), "o", markersize=9, fillstyle="none", color=f"C{number}")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    _save(figure, axes, path)


def _place(rows: Sequence[Row]) -> tuple[float, float]:
    """What stays, and what is swapped, over both styles."""
    still, count, met, said = (
        sum(_sum(rows, f"{part}: {what}") for part in parts)
        for parts, what in (
            (STYLES, "unchanged"),
            (STYLES, "captions"),
            (PARTS[1:], "met"),
            (PARTS[1:], "said"),
        )
    )
    return still / count, met / said


def _axes() -> tuple["Figure", "Axes"]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "mmneurons"
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    return figure, figure.subplots()


def _save(figure: "Figure", axes: "Axes", path: Path) -> None:
    axes.set_xlabel("other captions unchanged word for word")
    axes.set_ylabel("captions of new pictures swapped")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _pairs(groups: Mapping[str, Sequence[Row]]) -> set[tuple[str, str]]:
    """The pairs of words that every group has."""
    return set.intersection(*({(row["source"], row["to"]) for row in own} for own in groups.values()))


def _within(groups: Mapping[str, Sequence[Row]], pairs: Container[tuple[str, str]]) -> dict[str, list[Row]]:
    return {name: [row for row in own if (row["source"], row["to"]) in pairs] for name, own in groups.items()}


def _compared(rows: Sequence[Row], kind: str, usual: str = "swap") -> list[dict[str, list[Row]]]:
    """What was measured of a kind beside the default (of the kind `usual`), on the pairs that all have.

    What has less than a third of the pairs that others have would leave the others with as few: it has a table of its
    own, with all others on its pairs.
    """
    rest = _named(rows, kind)
    together = {f"{name} (default)": own for name, own in _named(rows, usual).items()}
    tried = []
    while rest:
        most = max(len(own) for own in rest.values())
        together = together | {name: own for name, own in rest.items() if 3 * len(own) >= most}
        rest = {name: own for name, own in rest.items() if name not in together}
        tried.append(together)
    return [_within(groups, pairs) for groups in tried if (pairs := _pairs(groups))]


def _page(rows: Sequence[Row], folder: Path) -> list[str]:
    lines = ["# Edits of the demo model, measured", ""]
    lines += ["Made by `python -m zoo.editing` and `python -m zoo.editing_tables`.", ""]
    lines += ["In brackets 95 % intervals (Wilson), behind them the number of captions.", ""]
    swaps = _named(rows, "swap")
    if swaps:
        lines += ["## Swaps", "", *_table(swaps), ""]
    for own in swaps.values():
        lines += _swaps(own)
    for own in _named(rows, "suppress").values():
        lines += [f"## {len(own)} words that are not to be said", "", *_suppressed(own), ""]
    for number, own in enumerate(_compared(rows, "suppress rival", "suppress")):
        title = "Rivals, on the same words" if not number else f"{[*own][-1]}, on fewer"
        lines += [f"### {title}", "", *_suppressing(own), ""]
    margins, rivals = (_compared(rows, kind) for kind in ("margin", "rival"))
    for title, shown in (("The margin", margins), ("Rivals", rivals)):
        for number, own in enumerate(shown):
            heading = f"## {title}, on the same pairs of words" if not number else f"### {[*own][-1]}, on fewer"
            lines += [heading, "", *_table(own), ""]
    swept = {
        kind: _within(own, pairs)
        for kind in dict.fromkeys(row["kind"] for row in rows)
        if kind.startswith(SWEEP) and (own := _named(rows, kind)) and (pairs := _pairs(own))
    }
    for kind, shown in swept.items():
        lines += [f"## What was tried of {kind.removeprefix(SWEEP)}", "", *_table(shown), ""]
    if swept:
        lines += ["![Generality against what stays, by method](swept.svg)", ""]
        _draw_swept(swept, folder / "swept.svg")
    if rivals:
        pairs = _pairs(rivals[0])
        within = _within(margins[0], pairs) if margins else {}
        drawn = rivals[0] | {name: own for name, own in within.items() if len(own) == len(pairs)}
        lines += [f"![Generality against what stays, pairs of words: {len(pairs)}](frontier.svg)", ""]
        _draw(drawn, folder / "frontier.svg")
    return lines


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=Path, nargs="*", default=[])
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    options.page.mkdir(parents=True, exist_ok=True)
    table = options.page / "edits.csv"
    rows: dict[tuple[str, ...], Row] = {}
    if table.exists():
        with table.open(newline="") as file:
            rows = {tuple(row[name] for name in NAMED[:4]): row for row in csv.DictReader(file)}
    for path in options.edits:
        for line in path.read_text().splitlines():
            row = counted(json.loads(line))
            rows[tuple(row[name] for name in NAMED[:4])] = row
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*NAMED, *COUNTED], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    (options.page / "README.md").write_text("\n".join(_page(list(rows.values()), options.page)))


if __name__ == "__main__":
    main()
