"""``mmn doctor``: what a model is made of, and whether its scores are exact."""

from __future__ import annotations

from typing import Annotated

import typer

from mmneurons.cli.common import (
    AllowPickle,
    AsJson,
    DeviceMap,
    Dtype,
    Revision,
    TrustRemoteCode,
    VisionTower,
    load_model,
)
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn doctor demo

    mmn doctor llava-hf/llava-1.5-7b-hf --dtype float32 --picture dog.jpg"""


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='"demo", the name of a checkpoint on the hub, or a folder.')
    ],
    picture: Annotated[
        str | None, typer.Option("--picture", help="What to test it on; by default a bundled picture.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    vision_tower: VisionTower = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's anatomy as it was measured, and check on a picture that the scores are exact."""
    from mmneurons.diagnosis import diagnose

    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    diagnosis = diagnose(vlm, picture, seed)
    Output(as_json).result("\n".join(diagnosis.lines()), **diagnosis.to_dict())
    if not diagnosis.ok:
        raise typer.Exit(1)
