"""Options that several subcommands have, with one name and one meaning each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from PIL import Image

    from mmneurons.cli.output import Output
    from mmneurons.edits.edit import Edit
    from mmneurons.recordings import CaptionOptions
    from mmneurons.vlm.model import VLM

__all__ = [
    "INTERRUPTED",
    "PICTURES",
    "AllowPickle",
    "AsJson",
    "Column",
    "DeviceMap",
    "Dtype",
    "Images",
    "Limit",
    "MaxNewTokens",
    "Model",
    "Prefix",
    "Prompt",
    "Quiet",
    "Revision",
    "RunFolder",
    "Sample",
    "Seed",
    "TrustRemoteCode",
    "VisionTower",
    "asked_of_captions",
    "finder_options",
    "load_model",
    "named_options",
    "pictures_of",
    "prompts_of",
    "shown_path",
    "typed",
]

INTERRUPTED = 130
"""The exit code of a command that was stopped by hand, as shells have it."""

MODEL = "Model"

Model = Annotated[
    str,
    typer.Option("--model", help='"demo", the name of a checkpoint on the hub, or a folder.', rich_help_panel=MODEL),
]
ModelOfEdit = Annotated[
    str | None,
    typer.Option(
        "--model",
        help='"demo", the name of a checkpoint on the hub, or a folder. Default: what the edit was made of.',
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of the weights, such as bfloat16.", rich_help_panel=MODEL)]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help='Where the weights go, such as "auto".', rich_help_panel=MODEL)
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.", rich_help_panel=MODEL)
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights that can run code.", rich_help_panel=MODEL)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the checkpoint's code.", rich_help_panel=MODEL)
]
VisionTower = Annotated[
    str | None,
    typer.Option("--vision-tower", help="The CLIP of a first-generation LLaVA.", rich_help_panel=MODEL),
]
PICTURES, CAPTIONS = "Pictures", "Captions"

Images = Annotated[
    Path | None,
    typer.Option("--images", help="The folder of the pictures that annotations name.", rich_help_panel=PICTURES),
]
Column = Annotated[
    str | None, typer.Option("--column", help="The column that holds the pictures.", rich_help_panel=PICTURES)
]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first so many.", rich_help_panel=PICTURES)]
Sample = Annotated[
    int | None, typer.Option("--sample", help="Only so many, drawn with --seed.", rich_help_panel=PICTURES)
]
Seed = Annotated[int, typer.Option("--seed", help="Of whatever is drawn.", rich_help_panel=PICTURES)]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", help="What the model is asked. Default: Describe the image in few words.", rich_help_panel=CAPTIONS
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", help="How captions are begun. Default: An image of", rich_help_panel=CAPTIONS),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Where a caption is cut. Default: 50.", rich_help_panel=CAPTIONS),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as 'mmn find' makes it.")]


def model_of(edit: Edit, said: str | None) -> str:
    """Which model is loaded: what was named, or, where nothing was, the one that an edit was made of."""
    return said or str(edit.model.get("name") or "demo")


def asked_as_learned(edit: Edit, said: CaptionOptions) -> CaptionOptions:
    """What was said of captions, and, where nothing was, how an edit's own were asked for."""
    from mmneurons.edits.edit import ASKED

    return cast("CaptionOptions", {**{name: edit.recipe[name] for name in ASKED if name in edit.recipe}, **said})


def asked_of_captions(prompt: str | None, prefix: str | None, max_new_tokens: int | None) -> CaptionOptions:
    """What was said of captions; what was not is left to the library."""
    asked: CaptionOptions = {}
    if prompt is not None:
        asked["prompt"] = prompt
    if prefix is not None:
        asked["prefix"] = prefix
    if max_new_tokens is not None:
        asked["max_new_tokens"] = max_new_tokens
    return asked


def prompts_of(path: Path) -> list[str]:
    """The prompts of a text file, one a line.

    Raises:
        SourceError: it cannot be read, or holds nothing.
    """
    from mmneurons.errors import SourceError
    from mmneurons.sources.lines import read_lines

    lines = [line.strip() for line in read_lines(path, "prompt") if line.strip()]
    if not lines:
        raise SourceError(f"{str(path)!r} holds nothing. Write a prompt a line.")
    return lines


def finder_options(finder: str, said: Sequence[str]) -> dict[str, object]:
    """What ``--finder-option NAME=VALUE`` says, as values of the finder's options.

    Raises:
        OptionError: it is not of this form, the finder has no such option, or the option has no such value.
    """
    from mmneurons.finders import make_finder

    options = named_options("--finder-option", said)
    # what the finder itself refuses shows before a model is loaded
    make_finder(finder, options)
    return options


def named_options(flag: str, said: Sequence[str]) -> dict[str, object]:
    """What ``FLAG NAME=VALUE`` says; ``none`` is None, everything else as JSON has it, or else a text.

    Raises:
        OptionError: it is not of this form.
    """
    import json

    from mmneurons.errors import OptionError

    options: dict[str, object] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise OptionError(f"{flag} {one!r} is not possible. Write {flag} NAME=VALUE, such as {flag} seed=3.")
        if value in ("none", "None"):
            options[name] = None
            continue
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def load_model(
    model: str,
    dtype: str | None,
    device_map: str | None,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    vision_tower: str | None = None,
) -> VLM:
    """Load a model without the bars and warnings of the libraries below."""
    from mmneurons.errors import OptionError
    from mmneurons.vlm.loading import load, without_bars

    if revision is not None and (model == "demo" or Path(model).expanduser().is_dir()):
        raise OptionError(f"--revision {revision!r} is for a checkpoint on the hub; {model!r} is here as it is.")

    with without_bars():
        return load(
            model,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            vision_tower=vision_tower,
        )


def pictures_of(
    inputs: Sequence[str],
    output: Output,
    images: Path | None = None,
    column: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> dict[str, Image.Image]:
    """Read the pictures that names stand for, each with its own name; say which of them cannot be read.

    Raises:
        SourceError: a name stands for nothing.
        PictureError: none of them can be read.
    """
    from mmneurons.sources import gather
    from mmneurons.sources.readable import readable

    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    return {item.source: picture for item, picture in readable(items, output.skipped, needed=True)}


def typed(arguments: Sequence[str]) -> str:
    """The command, to be typed again."""
    return " ".join(["mmn", *(shown_path(one) if Path(one).is_absolute() else shlex.quote(one) for one in arguments)])


def shown_path(path: str) -> str:
    """A path as it is typed; a shell has made those of one's own home absolute, which are nobody else's business."""
    for folder, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(folder):
            return short + shlex.quote(str(Path(path).relative_to(folder)))
    return shlex.quote(path)
