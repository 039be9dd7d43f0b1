"""``mmn edit``: make the model say something else instead of a word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    pictures_of,
    prompts_of,
)
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn edit photos --say cat --instead-of dog --out dog-to-cat.safetensors

    mmn edit photos --never-say dog --keep others --out no-dog.safetensors

The pictures whose captions say the word are what is learned from; all others must stay as they are. What becomes of
pictures that were not given, mmn apply shows and mmn measure --edit counts. The methods' options: docs/editing.md."""

EDIT = "Edit"

MANY = 0.1
"""The share of the captions that must stay of which people are warned when it changes."""


def command(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES…", help="Pictures as mmn find takes them.")],
    out: Annotated[Path, typer.Option("--out", help="The edit's file.")],
    model: Model = "demo",
    say: Annotated[str | None, typer.Option("--say", help="What is to be said.", rich_help_panel=EDIT)] = None,
    instead_of: Annotated[
        str | None, typer.Option("--instead-of", help="Instead of which word.", rich_help_panel=EDIT)
    ] = None,
    never_say: Annotated[
        str | None,
        typer.Option(
            "--never-say",
            help="A word that is not to be said. It goes from most captions; mmn measure --edit counts it. Safer is "
            "--method ban.",
            rich_help_panel=EDIT,
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            help="A file of prompts without a picture, one a line. Answers that say the word are learned from, too; "
            "the others must stay.",
            rich_help_panel=EDIT,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            help="Further pictures that must stay as they are, beside the bundled ones; again for more.",
            rich_help_panel=EDIT,
        ),
    ] = None,
    bundled: Annotated[
        bool,
        typer.Option(
            "--bundled/--no-bundled", help="The bundled pictures must stay as they are, too.", rich_help_panel=EDIT
        ),
    ] = True,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="How: least_squares, learned, refined; rivals: fine, knowledge_neurons, erase, scale, finetune, lora, "
            "ban.",
            rich_help_panel=EDIT,
        ),
    ] = "least_squares",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="An option of the method, NAME=VALUE, again for more: see docs/editing.md.",
            rich_help_panel=EDIT,
        ),
    ] = None,
    inflections: Annotated[bool, typer.Option(help="Plurals are meant, too.", rich_help_panel=EDIT)] = True,
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
    """Make the model say something else instead of a word, or not say it; the weights' change goes into one file."""
    from mmneurons.edits.make import edit
    from mmneurons.edits.methods import make_method
    from mmneurons.edits.task import Swap, check_request
    from mmneurons.errors import EditError, OptionError
    from mmneurons.whole_files import why_unwritable

    output = Output(as_json, quiet)
    if (never_say is None) == (instead_of is None) or (say is None) != (instead_of is None):
        raise OptionError("Say what is to change, one of both: --say cat --instead-of dog, or --never-say dog.")
    source = never_say if instead_of is None else instead_of
    assert source is not None
    check_request(Swap(source, say, inflections))
    if out.exists():
        raise EditError(f"{str(out)!r} is there already. Choose another name, or remove it.")
    if why := why_unwritable(out):
        raise EditError(f"The edit could not be written to {str(out)!r}: {why}. Choose another place with --out.")
    solver = make_method(method, named_options("--option", option or []))
    asked = [] if texts is None else prompts_of(texts)
    learned = pictures_of(inputs, output, images=images, column=column, limit=limit, sample=sample, seed=seed)
    kept = pictures_of(keep, output) if keep else {}
    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    made = edit(
        vlm,
        source,
        say,
        pictures=list(learned.values()),
        texts=asked,
        keep=list(kept.values()),
        bundled=bundled,
        method=solver,
        inflections=inflections,
        **asked_of_captions(prompt, prefix, max_new_tokens),
    )
    made.save(out)
    changed, of = made.kept_changed or (0, 0)
    if not made.converged:
        output.note("Not every token that is wanted became likely enough: try it with 'mmn apply' before you use it.")
    if changed > MANY * of:
        output.note(
            f"{changed} of {of} captions that must stay would change: try another --method, or give more pictures with "
            "--keep."
        )
    output.note(
        f"Learned at {made.recipe['wanted']} steps that say the word. 'mmn apply {out} PICTURES' shows captions before "
        f"and after, 'mmn measure --edit {out} PICTURES' measures them."
    )
    output.result(
        f"{out}: {made}",
        event="done",
        edit=str(out),
        converged=made.converged,
        neurons=len(made.neurons),
        wanted=made.recipe["wanted"],
        kept=of,
        changed=changed,
    )
