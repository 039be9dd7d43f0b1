"""``mmn export``: an edit as an adapter of peft, or as a whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmneurons.cli.common import (
    AllowPickle,
    AsJson,
    DeviceMap,
    Dtype,
    ModelOfEdit,
    Quiet,
    Revision,
    TrustRemoteCode,
    VisionTower,
    load_model,
    model_of,
)
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn export dog-to-cat.safetensors --peft adapter

    mmn export dog-to-cat.safetensors --checkpoint edited-model"""


def command(
    edit: Annotated[Path, typer.Argument(metavar="EDIT", help="A file of mmn edit.")],
    model: ModelOfEdit = None,
    peft: Annotated[Path | None, typer.Option("--peft", help="A folder for a LoRA adapter.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A folder for the whole model with the edit in its weights.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the edit is of another model.")] = False,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    vision_tower: VisionTower = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an edit in a form that others load: an adapter of peft, or a checkpoint of transformers."""
    from mmneurons.edits.edit import Edit
    from mmneurons.edits.shipping import check_folder, check_weights
    from mmneurons.errors import OptionError

    output = Output(as_json, quiet)
    if peft is None and checkpoint is None:
        raise OptionError("Say where to: --peft FOLDER, or --checkpoint FOLDER.")
    if peft is not None and checkpoint is not None and peft.resolve() == checkpoint.resolve():
        raise OptionError("--peft and --checkpoint name one folder. Give each its own.")
    own = Edit.load(edit)
    check_weights(own)
    for folder in (peft, checkpoint):
        if folder is not None:
            check_folder(folder)
    name = model_of(own, model)
    vlm = load_model(name, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    if peft is not None:
        own.to_peft(peft, vlm, force)
        output.result(f"{peft}: an adapter of peft", event="peft", folder=str(peft))
    if checkpoint is not None:
        merged = own.merge(vlm, checkpoint, force)
        if merged.note:
            output.note(merged.note)
        if merged.left_out:
            output.note(f"Left out, since they hold the weights without the edit: {', '.join(merged.left_out)}.")
        output.result(f"{checkpoint}: a checkpoint", event="checkpoint", folder=str(checkpoint))
