"""``mmn mitigate``: have words not said any more, with the proof that the rest stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmneurons.cli.common import (
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
    asked_of_captions,
    load_model,
    named_options,
)
from mmneurons.cli.output import Output

if TYPE_CHECKING:
    from mmneurons.mitigation.survey import Named
    from mmneurons.sources import Item

__all__ = ["WORDS_EXAMPLES", "words"]

WORDS_EXAMPLES = """Examples:

    mmn mitigate words photos --list words.txt --out mitigated --dry-run

    mmn mitigate words photos --list words.txt --out mitigated --peft

The list has a word a line, or word -> other. Half of the captions that say a word are learned from, the others are
measured on. Where too many other captions change, nothing is handed out, and the exit code is 1."""

WHAT, PROOF = "What is not to be said", "Proof"


def words(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES…", help="Pictures as mmn find takes them.")],
    listed: Annotated[Path, typer.Option("--list", help="The words, one a line.", rich_help_panel=WHAT)],
    out: Annotated[Path, typer.Option("--out", help="An empty folder for the edits and the summary.")],
    model: Model = "demo",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be learned from how many pictures.")
    ] = False,
    at_least: Annotated[
        float,
        typer.Option(
            "--at-least",
            help="Share of captions without the words that has to stay word for word; below it the edits are refused.",
            rich_help_panel=PROOF,
        ),
    ] = 0.9,
    peft: Annotated[bool, typer.Option("--peft", help="Write an adapter for peft, too.")] = False,
    method: Annotated[str, typer.Option("--method", help="As of mmn edit.", rich_help_panel=WHAT)] = "least_squares",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the method, NAME=VALUE, again for more.", rich_help_panel=WHAT),
    ] = None,
    images: Images = None,
    column: Column = None,
    limit: Limit = None,
    sample: Sample = None,
    seed: Seed = 0,
    prompt: Prompt = None,
    prefix: Prefix = None,
    max_new_tokens: MaxNewTokens = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    vision_tower: VisionTower = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Have listed words not said: learn an edit of each, prove them together, and write them down."""
    from mmneurons.edits.methods import make_method
    from mmneurons.edits.task import check_words
    from mmneurons.errors import EditError
    from mmneurons.mitigation.survey import survey
    from mmneurons.mitigation.wishes import read_wishes
    from mmneurons.mitigation.words import mitigate_words
    from mmneurons.options import check_share
    from mmneurons.reports.mitigation import check_folder, survey_lines, write_mitigation
    from mmneurons.sources import gather

    output = Output(as_json, quiet)
    check_share("--at-least", at_least)
    wishes = read_wishes(listed)
    options = named_options("--option", option or [])
    make_method(method, options)
    if not dry_run:
        check_folder(out)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    for wish in wishes:
        check_words(vlm, wish.swap)
    how = asked_of_captions(prompt, prefix, max_new_tokens)
    found = survey(
        vlm,
        _opened(items, output),
        wishes,
        seed=seed,
        progress=lambda done: output.note(f"{done}/{len(items)} pictures") if done % 80 == 0 else None,
        **how,
    )
    lines = survey_lines(found)
    if dry_run:
        text = "\n".join([*lines, "Nothing was learned, nothing written."])
        output.result(text, event="dry run", pictures=found.pictures, said={o.wish.word: o.count for o in found.found})
        return
    for line in lines:
        output.note(line)
    made = mitigate_words(vlm, found, at_least, method, options, output.note, how)
    command = " ".join(["mmn", *sys.argv[1:]])
    written = write_mitigation(out, vlm, found, made, command, at_least, peft)
    refusal = made.proof.refusal
    if refusal:
        raise EditError(
            f"Refused, and no edit was written: {refusal} {str(written.summary)!r} shows what changed. Leave words "
            "out, give more pictures, try --option margin=6, or lower --at-least if you can live with it."
        )
    output.result(
        f"{written.summary}: {len(made.edits)} edits, {written.edit}",
        event="done",
        summary=str(written.summary),
        edit=str(written.edit),
        adapter=None if written.adapter is None else str(written.adapter),
        edits=len(made.edits),
    )


def _opened(items: Sequence[Item], output: Output) -> Iterator[Named]:
    """Pictures as they are needed; what cannot be read is passed over, and said."""
    from mmneurons.errors import PictureError
    from mmneurons.vlm.pictures import decode_picture

    read = 0
    for item in items:
        try:
            yield item.source, decode_picture(item.read(), item.source)
            read += 1
        except PictureError as error:
            output.note(f"Passed over: {error}")
    if not read:
        raise PictureError("None of these pictures can be read. Name others.")
