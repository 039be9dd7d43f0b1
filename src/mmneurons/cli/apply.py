"""``mmn apply``: what a model says with edits in force."""

from __future__ import annotations

from contextlib import ExitStack
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
    ModelOfEdit,
    Prefix,
    Prompt,
    Quiet,
    Revision,
    Sample,
    Seed,
    TrustRemoteCode,
    VisionTower,
    asked_as_learned,
    asked_of_captions,
    load_model,
    model_of,
    pictures_of,
)
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn apply dog-to-cat.safetensors photos

    mmn apply dog-to-cat.safetensors photos --also no-tie.safetensors"""


def command(
    edit: Annotated[Path, typer.Argument(metavar="EDIT", help="A file of mmn edit.")],
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES…", help="Pictures as mmn find takes them.")],
    model: ModelOfEdit = None,
    also: Annotated[list[Path] | None, typer.Option("--also", help="Another edit, again for more.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the edit is of another model.")] = False,
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
    """Caption pictures without an edit and with it, side by side."""
    from mmneurons.edits.edit import Edit
    from mmneurons.edits.stack import check_fits, shared
    from mmneurons.measures.edit_outcome import as_edits
    from mmneurons.recordings import caption

    output = Output(as_json, quiet)
    edits = as_edits([Edit.load(path) for path in (edit, *(also or ()))])
    pictures = pictures_of(inputs, output, images=images, column=column, limit=limit, sample=sample, seed=seed)
    name = model_of(edits[0], model)
    vlm = load_model(name, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    for one in edits:
        check_fits(vlm, one, force)
    how = asked_as_learned(edits[0], asked_of_captions(prompt, prefix, max_new_tokens))
    before = caption(vlm, list(pictures.values()), **how)
    both: set[tuple[int, int]] = set()
    with ExitStack() as stack:
        for one in edits:
            both.update(shared(vlm, one))
            stack.enter_context(one.on(vlm, force=force))
        if both:
            output.note(f"The edits add up; {len(both)} neurons are in more than one of them.")
        after = caption(vlm, list(pictures.values()), **how)
    changed = 0
    for name, old, new in zip(pictures, before, after, strict=True):
        changed += old != new
        text = f"{name}: {old}" if old == new else f"{name}: {old}\n  → {new}"
        output.result(text, event="caption", picture=name, before=old, after=new)
    done = f"{changed} of {len(before)} captions changed."
    if as_json:
        output.result(done, event="done", changed=changed, of=len(before))
    else:
        output.note(done)
