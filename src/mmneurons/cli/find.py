"""``mmn find``: the neurons behind the words of many captions, into a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from mmneurons.cli.common import (
    INTERRUPTED,
    PICTURES,
    AllowPickle,
    AsJson,
    Column,
    DeviceMap,
    Dtype,
    Images,
    Limit,
    MaxNewTokens,
    Model,
    Prefix,
    Prompt,
    Quiet,
    Revision,
    Sample,
    Seed,
    TrustRemoteCode,
    VisionTower,
    finder_options,
    load_model,
)
from mmneurons.cli.output import Output

if TYPE_CHECKING:
    from mmneurons.engines.local import Progress, RunArguments

__all__ = ["EXAMPLES", "NONE_EXPLAINED", "command"]

NONE_EXPLAINED = 3
"""The exit code where no picture of a run could be explained."""

EXAMPLES = """Examples:

    mmn find photos/ --model llava-hf/llava-1.5-7b-hf --out run

    mmn find 'photos/*.jpg' --words dog --words cat --out run

    mmn find annotations/instances_val2017.json --images val2017/ --sample 500 --out run

    mmn find demo:pictures --out run

The same command again goes on where it stopped."""

WORDS = "Words and neurons"

OWN = ("against", "norm", "activation")
"""What only some finders take, and presets settle."""


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES…",
            help="Files, folders, globs, a Parquet file, a dataset's folder, COCO or SBU annotations, demo:pictures.",
        ),
    ],
    model: Model = "demo",
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("mmn-run"),
    words: Annotated[
        list[str] | None,
        typer.Option("--words", help="A word to explain, again for more. Default: all nouns.", rich_help_panel=WORDS),
    ] = None,
    finder: Annotated[
        str | None,
        typer.Option(
            "--finder",
            help="How neurons are scored: contribution (default), total, greedy, activation, gradient, ablation, "
            "random and others; a wrong name lists all.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    finder_option: Annotated[
        list[str] | None,
        typer.Option(
            "--finder-option",
            metavar="NAME=VALUE",
            help="Another option of the finder, such as handful=3 of greedy; again for more.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="What scores are read against: distribution (default), vocabulary, none, or another word.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    norm: Annotated[
        Literal["frozen", "none"] | None,
        typer.Option("--norm", help="frozen (default, exact) or none (the paper's).", rich_help_panel=WORDS),
    ] = None,
    activation: Annotated[
        Literal["product", "gate"] | None,
        typer.Option("--activation", help="product (default) or gate (the paper's).", rich_help_panel=WORDS),
    ] = None,
    token: Annotated[
        Literal["first", "last", "sum"] | None,
        typer.Option("--token", help="Which token of a word is explained: first (default).", rich_help_panel=WORDS),
    ] = None,
    occurrence: Annotated[
        Literal["all", "first"] | None,
        typer.Option("--occurrence", help="Of a word that is said again: all (default).", rich_help_panel=WORDS),
    ] = None,
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help="Settings of published work, such as pan2024.", rich_help_panel=WORDS),
    ] = None,
    shuffle_image_tokens: Annotated[
        int | None,
        typer.Option(
            "--shuffle-image-tokens",
            metavar="SEED",
            help="Put the picture's tokens into another order.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    neurons: Annotated[
        int, typer.Option("--neurons", help="How many neurons of a word are kept.", rich_help_panel=WORDS)
    ] = 10,
    promotes: Annotated[
        int, typer.Option("--promotes", help="How many tokens that each promotes.", rich_help_panel=WORDS)
    ] = 10,
    by: Annotated[
        Literal["cosine", "product"] | None,
        typer.Option("--by", help="How these are ranked: cosine (default) or product.", rich_help_panel=WORDS),
    ] = None,
    maps: Annotated[int, typer.Option("--maps", help="For how many neurons a heatmap.", rich_help_panel=WORDS)] = 10,
    images: Images = None,
    column: Column = None,
    limit: Limit = None,
    sample: Sample = None,
    seed: Seed = 0,
    prompt: Prompt = None,
    prefix: Prefix = None,
    max_new_tokens: MaxNewTokens = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try pictures again that failed before.", rich_help_panel=PICTURES)
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="How many pictures at once.")] = 8,
    shard: Annotated[int, typer.Option("--shard", help="How many pictures are written at once.")] = 32,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    vision_tower: VisionTower = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the neurons behind the words of every picture's caption, into a run folder.

    Stop it at any time: the same command again goes on. A picture that cannot be read is a row with its error.
    """
    from mmneurons.engines.local import run
    from mmneurons.finders import FINDERS
    from mmneurons.options import check_known, check_seed, check_whole, named_words
    from mmneurons.presets import preset
    from mmneurons.runs.writer import check_folder
    from mmneurons.sources import gather

    output = Output(as_json, quiet)
    # before the model, which takes longer: what is misspelt shows at once
    for name, count, least in (
        ("--neurons", neurons, 1),
        ("--promotes", promotes, 0),
        ("--maps", maps, 0),
        ("--max-new-tokens", 50 if max_new_tokens is None else max_new_tokens, 1),
        ("--batch-size", batch_size, 1),
        ("--shard", shard, 1),
    ):
        check_whole(name, count, least)
    check_seed(seed)
    named_words(words)
    published = None if preset_name is None else preset(preset_name)
    if shuffle_image_tokens is not None:
        check_seed(shuffle_image_tokens)
    if finder is not None:
        check_known("finder", finder, FINDERS)
    more = finder_options(finder or "contribution", finder_option or [])
    gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    check_folder(out)
    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    said: dict[str, object] = {
        "against": against,
        "norm": norm,
        "activation": activation,
        "prompt": prompt,
        "prefix": prefix,
        "max_new_tokens": max_new_tokens,
        "finder": finder,
        "token": token,
        "occurrence": occurrence,
        "by": by,
        "shuffle_image_tokens": shuffle_image_tokens,
    }
    asked: dict[str, object] = {}
    if published is not None:
        asked = {**published.options, "by": published.by}
    # what is said beside a preset counts
    asked |= {name: None if value == "none" else value for name, value in said.items() if value is not None}
    if asked.get("finder", "contribution") != "contribution":
        asked = {name: value for name, value in asked.items() if name not in OWN or said[name]}
    asked |= more
    asked["batch_size"] = batch_size
    with output.progress() as tell:
        last: list[Progress] = []

        def keep_and_tell(now: Progress) -> None:
            last[:] = [now]
            tell(now)

        try:
            run(
                vlm,
                inputs,
                out,
                images=images,
                column=column,
                limit=limit,
                sample=sample,
                seed=seed,
                words=words or None,
                neurons=neurons,
                promotes=promotes,
                maps=maps,
                shard=shard,
                retry_failed=retry_failed,
                progress=keep_and_tell,
                **cast("RunArguments", asked),
            )
        except KeyboardInterrupt:
            done = last[0].done if last else 0
            output.result(
                f"Stopped. {done} pictures are done; the same command goes on.",
                event="stopped",
                run=str(out),
                done=done,
            )
            raise typer.Exit(INTERRUPTED) from None
    (end,) = last
    explained = end.done - end.failed - end.duplicates
    text = f"{out}: {explained} picture{'' if explained == 1 else 's'} explained"
    text += "" if end.before else f", {end.words} word{'' if end.words == 1 else 's'}"
    text += f", {end.duplicates} met twice" if end.duplicates else ""
    text += f", {end.failed} failed (their errors: mmn show {out})" if end.failed else ""
    text += f"; {end.before} were done before" if end.before else ""
    output.result(text, event="done", run=str(out), **asdict(end))
    output.note(f"look: mmn report {out}    or    mmn show {out}")
    if not explained and end.total:
        raise typer.Exit(NONE_EXPLAINED)
