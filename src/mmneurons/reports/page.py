"""Putting the page together from its template, and what the browser may do with it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files

import cmap
import jinja2
import numpy as np
import polars as pl
from markupsafe import Markup

from mmneurons.heatmaps import COLORS
from mmneurons.reports import about, charts, over_run
from mmneurons.reports.gallery import ShownPicture, ShownWord, shown_pictures
from mmneurons.reports.script_data import PROMOTED, script_data
from mmneurons.reports.texts import file_name, json_for_script, percent, plain
from mmneurons.reports.thumbnails import thumbnail
from mmneurons.runs.reader import Run

__all__ = ["page", "segments"]


def page(run: Run, pictures: int) -> str:
    """The report as HTML.

    Args:
        run: the run.
        pictures: how many pictures to show.
    """
    shown, lemmas, blocks = shown_pictures(run, pictures), over_run.common_lemmas(run), over_run.block_counts(run)
    shared = over_run.shared(run, lemmas)
    scripts = [charts.bundle(), _file("report.js")]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(plain=plain, name=file_name, percent=percent)
    return environment.from_string(_file("report.html")).render(
        policy=_policy(scripts),
        style=Markup(_file("report.css")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(json_for_script(script_data(shown, _charts(run, blocks, shared)))),
        gradient=_gradient(),
        title=about.model_name(run),
        facts=about.facts(run),
        counts=over_run.count(run),
        total=run.about.get("total"),
        pictures=[_card(run, picture) for picture in shown],
        fullest=_fullest(blocks),
        serving=over_run.serving(run, lemmas),
        shared=shared,
        errors=over_run.errors(run),
        options=[*about.group(run, "options").items(), *about.group(run, "versions").items()],
        best=over_run.BEST,
        compared=over_run.LEMMAS,
        listed=over_run.SERVING,
        promoted=PROMOTED,
        version=version("mmneurons"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def segments(caption: str, words: Sequence[ShownWord]) -> list[tuple[str, int | None]]:
    """A caption in pieces: each with the number of the word that it is, or None between words.

    Words that lie over an earlier one, or outside of the caption, follow behind it as pieces of their own.
    """
    pieces: list[tuple[str, int | None]] = []
    aside: list[tuple[str, int | None]] = []
    at = 0
    for index in sorted(range(len(words)), key=lambda index: (words[index].start, words[index].end)):
        word = words[index]
        if not at <= word.start < word.end <= len(caption):
            aside += [(" ", None), (word.word or word.lemma, index)]
            continue
        pieces += [(caption[at : word.start], None), (caption[word.start : word.end], index)]
        at = word.end
    pieces.append((caption[at:], None))
    return [piece for piece in [*pieces, *aside] if piece[0]]


def _file(name: str) -> str:
    return (files("mmneurons.reports") / "templates" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """What the browser may do with the page: run these scripts and show what is in the file, nothing else."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # the charts' library styles its elements one by one
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _gradient() -> str:
    """The colors of the maps as a CSS gradient."""
    stops = [cmap.Colormap(COLORS)(float(at)).hex for at in np.linspace(0, 1, 17)]
    return f"linear-gradient(to right, {', '.join(stops)})"


def _card(run: Run, picture: ShownPicture) -> dict[str, object]:
    """A picture of the gallery."""
    width, height = picture.size
    return {
        "source": picture.source,
        "segments": segments(picture.caption, picture.words),
        "left_out": picture.left_out,
        "aspect": round(width / height, 5),
        "thumbnail": thumbnail(picture.source, run.folder, run.column, picture.image_id),
    }


def _fullest(blocks: pl.DataFrame) -> tuple[int, float] | None:
    """The block with most of the neurons, and its share of them; None where there are none."""
    if blocks.is_empty():
        return None
    layer, times = blocks.sort("times", "layer", descending=True).select("layer", "times").row(0)
    return layer, times / sum(blocks["times"].to_list())


def _charts(run: Run, blocks: pl.DataFrame, shared: over_run.Shared) -> dict[str, dict[str, object]]:
    drawn = {}
    if not blocks.is_empty():
        drawn["blocks"] = charts.block_chart(blocks, max(about.blocks(run), *(blocks["layer"] + 1).to_list()))
    if len(shared.lemmas) > 1:
        readable = shared.matrix.with_columns(pl.col("lemma", "other").map_elements(plain, return_dtype=pl.String))
        drawn["sharing"] = charts.sharing_chart(readable, [plain(lemma) for lemma in shared.lemmas])
    return drawn
