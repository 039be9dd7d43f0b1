"""``mmn measure``: whether neurons matter, finder by finder, with controls and intervals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mmneurons.cli.common import (
    INTERRUPTED,
    PICTURES,
    AllowPickle,
    AsJson,
    Column,
    DeviceMap,
    Dtype,
    Limit,
    MaxNewTokens,
    Model,
    Prefix,
    Prompt,
    Quiet,
    Revision,
    Sample,
    TrustRemoteCode,
    VisionTower,
    asked_of_captions,
    load_model,
    shown_path,
    typed,
)
from mmneurons.cli.measure_edit import (
    EditRequest,
    Edits,
    HopFile,
    Kept,
    Learned,
    Rivals,
    check_edit_options,
    measure_edits,
)
from mmneurons.cli.output import Output
from mmneurons.cli.truths import truths_of, vocabulary_of

if TYPE_CHECKING:
    from mmneurons.engines.measuring import Told
    from mmneurons.measures.hallucination import Question
    from mmneurons.measures.objects import Vocabulary
    from mmneurons.measures.suites import Suite
    from mmneurons.measures.truth import Truth
    from mmneurons.recordings import CaptionOptions

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn measure --suite pan2024 --quick --out measured

    mmn measure RUN --finders contribution --finders total --measures causal --out measured

    mmn measure val2017/ --model llava-hf/llava-1.5-7b-hf --truth instances_val2017.json --sample 200 --out measured

    mmn measure --edit dog-to-cat.safetensors others --learned photos --rivals --out proof

The same command again goes on where it stopped, with --edit at the next column of the
table. The tables and figures stand in the folder's README.md."""

WHAT = "What is measured"


def command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES…]",
            help="A run folder of mmn find, or pictures as mmn find takes them. Default: the bundled ones.",
        ),
    ] = None,
    model: Model = "demo",
    out: Annotated[Path, typer.Option("--out", help="The folder for what is measured.")] = Path("mmn-measured"),
    suite: Annotated[str, typer.Option("--suite", help="The whole study: pan2024.", rich_help_panel=WHAT)] = "pan2024",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer orders, texts and words for dear finders.", rich_help_panel=WHAT),
    ] = False,
    finders: Annotated[
        list[str] | None,
        typer.Option("--finders", help="A finder, again for more. Default: all.", rich_help_panel=WHAT),
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measures",
            help="causal, sensitivity, region, across, looking, hallucination, pope; again for more. Default: all that "
            "the pictures' truth allows, but pope.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--words", help="A word to measure, again for more. Default: all nouns.", rich_help_panel=WHAT),
    ] = None,
    truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--truth",
            help="What the pictures show: COCO instances or captions, or our own JSON; again for more.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    aliases: Annotated[
        Path | None,
        typer.Option("--aliases", help="Other names of the truth's objects, JSON.", rich_help_panel=PICTURES),
    ] = None,
    wordnet: Annotated[
        bool,
        typer.Option("--wordnet", help="Nouns also name objects that they are a kind of.", rich_help_panel=PICTURES),
    ] = False,
    encoder: Annotated[
        Path | None,
        typer.Option("--encoder", help="A BERT's folder. Default: all-MiniLM-L6-v2.", rich_help_panel=WHAT),
    ] = None,
    clip: Annotated[Path | None, typer.Option("--clip", help="A CLIP's folder.", rich_help_panel=WHAT)] = None,
    edit: Edits = None,
    learned: Learned = None,
    hops: HopFile = None,
    keep: Kept = None,
    rivals: Rivals = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="A folder of pictures; with annotations the folder of the pictures that they name.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    column: Column = None,
    limit: Limit = None,
    sample: Sample = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of whatever is drawn. Default: 0, or a run's.", rich_help_panel=PICTURES),
    ] = None,
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
    """Measure whether the neurons behind words matter, for several ways to find them.

    Every figure stands beside its control, with a 95 % interval. Stop it at any time: the same command again goes on.
    """
    from mmneurons.engines.measuring import measure
    from mmneurons.measures.truth import BUNDLED
    from mmneurons.options import check_seed, named_words
    from mmneurons.reports.measured import write_page
    from mmneurons.reports.measured_notes import never_said
    from mmneurons.reports.texts import count_of

    output = Output(as_json, quiet)
    check_seed(seed or 0)
    named_words(words)
    edits = EditRequest(edit or [], learned or [], keep or [], hops, rivals)
    elsewhere = {"--finders": finders, "--words": words, "--quick": quick, "--encoder": encoder, "--clip": clip}
    of_edits = check_edit_options(edits, inputs or images, measures or [], elsewhere)
    said = _Asked(inputs or [], images, column, model, words or None, limit, sample, seed)
    asked = _pictures(said)
    drawn = asked.seed or 0
    files = [str(file) for file in truth or ()]
    truths = truths_of(files or ([BUNDLED] if asked.inputs == [BUNDLED] else []))
    known = vocabulary_of(truths, aliases, wordnet)
    _check_names(suite, finders or [], measures or [], known)
    options = {**asked.captions, **asked_of_captions(prompt, prefix, max_new_tokens)}
    if of_edits:
        measure_edits(
            output,
            edits,
            asked.inputs,
            out,
            lambda name: load_model(name, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower),
            model=asked.model,
            truths=truths,
            known=known,
            questions=_questions(truths, known, drawn) if "pope" in (measures or []) else (),
            images=asked.images,
            column=asked.column,
            limit=asked.limit,
            sample=asked.sample,
            seed=drawn,
            how=cast("CaptionOptions", options),
        )
        return
    vlm = load_model(asked.model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    gated = all(block.gated for block in vlm.anatomy.blocks)
    plan = _plan(suite, quick, finders or [], measures or [], gated, encoder, clip, known)
    last: list[Told] = []
    try:
        measured = measure(
            vlm,
            asked.inputs,
            out,
            plan,
            truths=truths,
            words=asked.words,
            images=asked.images,
            column=asked.column,
            limit=asked.limit,
            sample=asked.sample,
            seed=drawn,
            options=cast("CaptionOptions", options),
            questions=_questions(truths, known, drawn) if "pope" in plan.names else (),
            progress=lambda now: _tell(output, last, now),
        )
    except KeyboardInterrupt:
        done = last[-1].done if last else 0
        text = f"Stopped. {count_of(done, 'picture')} {'is' if done == 1 else 'are'} done; the same command goes on."
        output.result(text, event="stopped", folder=str(out), done=done)
        raise typer.Exit(INTERRUPTED) from None
    page = write_page(measured, plan, truths, known, command=typed(sys.argv[1:]), truth_files=[*map(shown_path, files)])
    if missing := never_said(measured):
        output.note(f"No caption says {', '.join(map(repr, missing))}.")
    counted = f"{count_of(last[-1].words, 'word')} of {count_of(last[-1].done, 'picture')}"
    output.result(f"{page}: {counted}", event="done", page=str(page))


@dataclass(frozen=True)
class _Asked:
    """Which pictures, with which model, asked how: as said, or as a run folder says.

    Attributes:
        inputs: what is named as pictures; the others as the options of the command.
        images: see there.
        column: see there.
        model: see there.
        words: see there.
        limit: see there.
        sample: see there.
        seed: see there.
        captions: how captions come about.
    """

    inputs: Sequence[str]
    images: Path | None
    column: str | None
    model: str
    words: Sequence[str] | None
    limit: int | None
    sample: int | None
    seed: int | None
    captions: Mapping[str, object] = field(default_factory=dict)


def _pictures(said: _Asked) -> _Asked:
    """What is asked, with what a run folder says where nothing was said."""
    from mmneurons.errors import OptionError
    from mmneurons.measures.truth import BUNDLED
    from mmneurons.runs.schema import RUN_FILE

    if len(said.inputs) == 1 and Path(said.inputs[0], RUN_FILE).is_file():
        return _of_run(said)
    if said.inputs:
        return said
    if said.images is not None:
        return replace(said, inputs=[str(said.images)], images=None)
    if said.model != "demo":
        raise OptionError("Name the pictures to measure: files, a folder, annotations, or --images FOLDER.")
    return replace(said, inputs=[BUNDLED])


def _of_run(said: _Asked) -> _Asked:
    from mmneurons.errors import OptionError
    from mmneurons.runs.reader import open_run

    run = open_run(said.inputs[0])
    pictures, options, own = (run.about.get(name) for name in ("pictures", "options", "model"))
    assert isinstance(pictures, Mapping)
    assert isinstance(options, Mapping)
    assert isinstance(own, Mapping)
    if run.images.collect().is_empty():
        raise OptionError(f"The run {said.inputs[0]!r} holds no picture yet: there is nothing to measure.")
    folder = pictures.get("images")
    place = None if folder is None else run.folder / str(folder)
    return _Asked(
        inputs=[str(run.folder / name) if (run.folder / name).exists() else str(name) for name in pictures["inputs"]],
        images=place if said.images is None else said.images,
        column=pictures.get("column") if said.column is None else said.column,
        model=said.model if said.model != "demo" else str(own["name"]),
        words=options.get("words") if said.words is None else said.words,
        limit=pictures.get("limit") if said.limit is None else said.limit,
        sample=pictures.get("sample") if said.sample is None else said.sample,
        seed=options.get("seed") if said.seed is None else said.seed,
        captions={name: options[name] for name in ("prompt", "prefix", "max_new_tokens") if name in options},
    )


def _check_names(suite: str, finders: Sequence[str], measures: Sequence[str], known: Vocabulary | None) -> None:
    """What is misspelt, or cannot be measured, shows before a model is loaded."""
    from mmneurons.errors import OptionError
    from mmneurons.measures.suites import suite as make

    make(suite, finders=tuple(finders), measures=tuple(one for one in measures if one != "sensitivity"))
    needing = [one for one in measures if one in ("looking", "hallucination", "pope")]
    if needing and known is None:
        raise OptionError(f"{needing[0]} needs to know what the pictures show: pass --truth FILE.")


def _plan(
    suite: str,
    quick: bool,
    finders: Sequence[str],
    measures: Sequence[str],
    gated: bool,
    encoder: Path | None,
    clip: Path | None,
    known: Vocabulary | None,
) -> Suite:
    from mmneurons.measures.suites import MEASURES
    from mmneurons.measures.suites import suite as make
    from mmneurons.nouns import nouns
    from mmneurons.vlm.loading import without_bars
    from mmneurons.vlm.text_encoder import load_clip, load_text_encoder

    wanted = tuple(measures) or tuple(
        one for one in MEASURES if one != "pope" and (known is not None or one not in ("looking", "hallucination"))
    )
    if "hallucination" in wanted:
        nouns("a dog")  # where there is no pipeline, that shows now
    with without_bars():
        texts = load_text_encoder(encoder) if "sensitivity" in wanted else None
        both = None if clip is None else load_clip(clip)
    return make(
        suite,
        quick=quick,
        finders=tuple(finders),
        measures=wanted,
        gated=gated,
        encoder=texts,
        clip=both,
        vocabulary=known,
    )


def _questions(truths: Mapping[str, Truth] | None, known: Vocabulary | None, seed: int) -> list[Question]:
    from mmneurons.measures.hallucination import KINDS, mentions, pope_questions

    assert truths is not None
    assert known is not None
    there = {file: mentions("", truth, known).there for file, truth in truths.items()}
    return [question for kind in KINDS for question in pope_questions(there, kind, seed=seed)]


def _tell(output: Output, last: list[Told], now: Told) -> None:
    last[:] = [now]
    words = f"{now.words} word{'' if now.words == 1 else 's'}"
    output.note(f"{now.done}/{now.total} pictures, {words}, {now.seconds:.0f} s")
