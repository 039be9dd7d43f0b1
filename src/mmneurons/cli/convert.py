"""``mmn convert``: a first-generation LLaVA as an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmneurons.cli.common import AllowPickle, AsJson, Dtype, Quiet
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn convert llava-llama-2-13b-chat-lightning-preview --vision-tower clip-vit-large-patch14 --out llava-13b"""


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A first-generation LLaVA checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; new or empty.")],
    vision_tower: Annotated[
        str | None,
        typer.Option("--vision-tower", help="The folder of its CLIP. Default: what the checkpoint names."),
    ] = None,
    dtype: Dtype = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a first-generation LLaVA (liuhaotian/*) as a checkpoint that transformers loads.

    mmn find and mmn.load convert such a folder on the fly; this does it once.
    """
    from mmneurons.errors import ModelLoadError
    from mmneurons.vlm.families.first_llava import convert, is_first_llava
    from mmneurons.vlm.loading import without_bars

    output = Output(as_json, quiet)
    if not is_first_llava(folder):
        raise ModelLoadError(f"{str(folder)!r} is no first-generation LLaVA checkpoint: its config.json names no CLIP.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelLoadError(f"{str(out)!r} is there already and not empty. Choose a new folder with --out.")
    with without_bars():
        model, processor = convert(folder, vision_tower, dtype, allow_pickle)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    output.result(f"{out}: load it with mmn.load({str(out)!r})", event="done", folder=str(out))
