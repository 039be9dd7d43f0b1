"""The charts of a report, as Vega-Lite; colors are the page's, so that they follow it from light to dark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import altair as alt
import polars as pl

__all__ = ["block_chart", "bundle", "sharing_chart"]

FONT = "system-ui, sans-serif"
STRONG, PALE, INK, SOFT, LINE = (f"var(--{name})" for name in ("accent", "accent-pale", "ink", "ink-soft", "line"))
TIMES, DIFFERENT = "times among a word's best", "different neurons"
STEP = 17


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``vegaEmbed``."""
    import vl_convert

    release = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=release)


def block_chart(counts: pl.DataFrame, blocks: int) -> dict[str, object]:
    """How often neurons of each block are among a word's best, and how many different ones are.

    Args:
        counts: ``layer``, ``times``, ``different``; blocks that have none may be missing.
        blocks: how many the model has.
    """
    every = pl.DataFrame({"layer": range(blocks)}, schema={"layer": counts.schema["layer"]})
    counts = every.join(counts, on="layer", how="left").fill_null(0).sort("layer")
    base = alt.Chart(counts).encode(
        x=alt.X("layer:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap="greedy", ticks=False)),
        tooltip=[
            alt.Tooltip("layer:O", title="block"),
            alt.Tooltip("times:Q", title=TIMES, format=","),
            alt.Tooltip("different:Q", title=DIFFERENT, format=","),
        ],
    )

    def bars(column: str, name: str, band: float) -> alt.Chart:
        return base.mark_bar(width=alt.RelativeBandSize(band=band)).encode(
            y=alt.Y(f"{column}:Q", title=None, axis=alt.Axis(tickCount=4, format="~s", domain=False, ticks=False)),
            color=alt.ColorDatum(name, type="nominal", title=None),
        )

    layers = alt.LayerChart(layer=[bars("times", TIMES, 0.85), bars("different", DIFFERENT, 0.4)])
    return _styled(layers.properties(width="container", height=200))


def sharing_chart(matrix: pl.DataFrame, lemmas: Sequence[str]) -> dict[str, object]:
    """How much the sets of neurons of every two words overlap; a word with itself is left blank.

    Args:
        matrix: ``lemma``, ``other``, ``shared``, ``jaccard``.
        lemmas: the order of the words.
    """
    order = list(lemmas)
    pairs = matrix.filter(pl.col("lemma") != pl.col("other"))
    largest = max(pairs["jaccard"].to_list(), default=0.0)
    axis = alt.Axis(title=None, ticks=False, domain=False, labelLimit=110, labelFontSize=11, labelOverlap=False)
    chart = (
        alt.Chart(pairs)
        .mark_rect(fill=STRONG)
        .encode(
            x=alt.X("other:N", sort=order, scale=alt.Scale(domain=order), axis=axis, title=None),
            y=alt.Y("lemma:N", sort=order, scale=alt.Scale(domain=order), axis=axis, title=None),
            opacity=alt.Opacity(
                "jaccard:Q",
                scale=alt.Scale(domain=[0, largest or 1], range=[0, 1]),
                legend=alt.Legend(
                    title="overlap", format=".0%", symbolType="square", symbolFillColor=STRONG, tickCount=4
                ),
            ),
            tooltip=[
                alt.Tooltip("lemma:N", title="word"),
                alt.Tooltip("other:N", title="and"),
                alt.Tooltip("shared:Q", title="neurons of both"),
                alt.Tooltip("jaccard:Q", title="overlap", format=".0%"),
            ],
        )
    )
    return _styled(chart.properties(width="container", height=STEP * len(order)))


def _styled(chart: alt.Chart | alt.LayerChart) -> dict[str, object]:
    plain = {"titleColor": SOFT, "titleFontWeight": "normal", "titleFontSize": 12}
    styled = (
        chart.configure(font=FONT, background="transparent")
        .configure_range(category=[PALE, STRONG])
        .configure_view(stroke=None)
        .configure_axis(labelColor=SOFT, labelFontSize=11, gridColor=LINE, domainColor=LINE, **plain)
        .configure_legend(orient="top", labelColor=INK, labelFontSize=12, labelLimit=0, **plain)
    )
    return styled.to_dict()
