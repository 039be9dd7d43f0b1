"""``mmn models``: which families of models are proved, and in what."""

from __future__ import annotations

from typing import Annotated

import typer

from mmneurons.cli.common import AsJson
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn models

    mmn models llava --json"""


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only families whose name holds this.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the families of models with what is proved of each by the tests, and those out of reach."""
    from mmneurons.vlm.families import OUT_OF_REACH
    from mmneurons.vlm.families.proved import PROPERTIES, proved

    output = Output(as_json)
    families = [family for family in proved() if name is None or name in family.name]
    refused = {kind: reason for kind, reason in OUT_OF_REACH.items() if name is None or name in kind}
    width = max((len(family.name) for family in families), default=0)
    head = "  ".join([" " * width, *PROPERTIES])
    if families and not as_json:
        output.result(head)
    for family in families:
        cells = [family.properties.get(what, "no").ljust(len(what)) for what in PROPERTIES]
        text = "  ".join([family.name.ljust(width), *cells]).rstrip()
        data = {what.replace(" ", "_"): family.properties.get(what) for what in PROPERTIES}
        output.result(text, name=family.name, **data)
    for kind, reason in sorted(refused.items()):
        output.result(f"{kind}: out of reach: {reason}", name=kind, out_of_reach=reason)
    if not families and not refused:
        output.note(f"No family's name holds {name!r}.")
    output.note("Other families that transformers loads are measured when they are loaded: mmn doctor MODEL.")
