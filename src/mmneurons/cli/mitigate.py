"""``mmn mitigate``: have words not said any more, with the proof that the rest stays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    typed,
)
from mmneurons.cli.output import Output
from mmneurons.cli.truths import truths_of, vocabulary_of

if TYPE_CHECKING:
    from PIL import Image

    from mmneurons.measures.truth import Truth
    from mmneurons.mitigation.lesson import Shown
    from mmneurons.sources import Item

__all__ = ["HALLUCINATION_EXAMPLES", "WORDS_EXAMPLES", "hallucination", "words"]

WORDS_EXAMPLES = """Examples:

    mmn mitigate words photos --list words.txt --out mitigated --dry-run

    mmn mitigate words photos --list words.txt --out mitigated --peft

The list has a word a line, or word -> other. Every other caption that says a word is learned from, up to 8, those
between are measured on, up to 24. Where too many other captions change, nothing is handed out, and the exit code
is 1."""

HALLUCINATION_EXAMPLES = """Examples:

    mmn mitigate hallucination photos --truth truth.json --out grounded --dry-run

    mmn mitigate hallucination val2017 --truth instances_val2017.json --sample 2000 --model M --out grounded

Half of the pictures (--held) are learned from, the others are measured on. Where the model is unsure it says a
general word, "thing" by default; without one (--general none) only what can be put right is changed."""

SPENT = 0.75
"""What share of what may be lost is planned with: on other pictures it may be more."""

FEW = 1000
"""From fewer captions as much is broken as mended: `docs/decisions.md`, on what can be done about hallucinations."""

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
    from mmneurons.edits.methods import check_method, make_method
    from mmneurons.edits.task import check_words
    from mmneurons.errors import EditError, OptionError, PictureError
    from mmneurons.mitigation.survey import survey
    from mmneurons.mitigation.wishes import read_wishes
    from mmneurons.mitigation.words import mitigate_words
    from mmneurons.options import check_share
    from mmneurons.reports.mitigation import check_folder, survey_lines, write_mitigation
    from mmneurons.reports.texts import count_of
    from mmneurons.sources import gather

    output = Output(as_json, quiet)
    check_share("--at-least", at_least)
    wishes = read_wishes(listed)
    options = named_options("--option", option or [])
    solver = make_method(method, options)
    if peft and method == "ban":
        raise OptionError("--peft cannot hold a ban: it changes no weights. Leave one of them out.")
    if not dry_run:
        check_folder(out)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    for wish in wishes:
        check_words(vlm, wish.swap)
    check_method(vlm, solver)
    how = asked_of_captions(prompt, prefix, max_new_tokens)
    found = survey(
        vlm,
        ((item.source, picture) for item, picture in _readable(items, output)),
        wishes,
        seed=seed,
        progress=lambda done: output.note(f"{done}/{len(items)} pictures") if done % 80 == 0 else None,
        **how,
    )
    if not found.pictures:
        raise PictureError("None of these pictures can be read. Name others.")
    lines = survey_lines(found)
    if dry_run:
        text = "\n".join([*lines, "Nothing was learned, nothing written."])
        output.result(text, event="dry run", pictures=found.pictures, said={o.wish.word: o.count for o in found.found})
        return
    for line in lines:
        output.note(line)
    made = mitigate_words(vlm, found, at_least, method, options, output.note, **how)
    command = typed(sys.argv[1:])
    written = write_mitigation(out, vlm, found, made, command, at_least, peft)
    refusal = made.proof.refusal
    if refusal:
        raise EditError(
            f"Refused, and no edit was written: {refusal} {str(written.summary)!r} shows what changed. Give more "
            "pictures, leave words out, or, where too much changes, lower --at-least if you can live with it."
        )
    output.result(
        f"{written.summary}: {count_of(len(made.edits), 'edit')}, {written.edit}"
        + (f", {written.adapter}" if written.adapter else ""),
        event="done",
        summary=str(written.summary),
        edit=str(written.edit),
        adapter=None if written.adapter is None else str(written.adapter),
        edits=len(made.edits),
    )


def hallucination(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES…", help="Pictures as mmn find takes them.")],
    truth: Annotated[
        list[Path],
        typer.Option("--truth", help="What the pictures show, as mmn measure takes it; again for more."),
    ],
    out: Annotated[Path, typer.Option("--out", help="An empty folder for the edit and the summary.")],
    model: Model = "demo",
    aliases: Annotated[Path | None, typer.Option("--aliases", help="Other names of the objects, JSON.")] = None,
    wordnet: Annotated[
        bool, typer.Option("--wordnet", help="Nouns also name objects that they are a kind of.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is said of things that are not there.")
    ] = False,
    general: Annotated[
        str,
        typer.Option("--general", help="What is said where the model is unsure; none for no such word."),
    ] = "thing",
    recall: Annotated[
        float, typer.Option("--recall", help="By how much recall may fall at most.", rich_help_panel=PROOF)
    ] = 0.02,
    at_least: Annotated[
        float,
        typer.Option(
            "--at-least",
            help="Share of captions that were right that has to stay word for word; below it the edit is refused.",
            rich_help_panel=PROOF,
        ),
    ] = 0.9,
    held: Annotated[
        float,
        typer.Option(
            "--held", help="Share of the pictures that are measured on and not learned from.", rich_help_panel=PROOF
        ),
    ] = 0.5,
    peft: Annotated[bool, typer.Option("--peft", help="Write an adapter for peft, too.")] = False,
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
    """Have less said of what is not there: learned where the truth is known, proved on other pictures."""
    from mmneurons.errors import EditError, OptionError
    from mmneurons.mitigation.grounded import ground_captions
    from mmneurons.mitigation.grounding import Settings
    from mmneurons.mitigation.hallucination import check_general, learn
    from mmneurons.mitigation.lesson import read_lesson, split
    from mmneurons.nouns import nouns
    from mmneurons.options import check_share
    from mmneurons.reports.grounding import lesson_lines, write_grounding
    from mmneurons.reports.mitigation import check_folder
    from mmneurons.reports.texts import count_of
    from mmneurons.sources import gather

    output = Output(as_json, quiet)
    for name, value in (("--at-least", at_least), ("--recall", recall), ("--held", held)):
        check_share(name, value)
    truths = truths_of([str(file) for file in truth])
    known = vocabulary_of(truths, aliases, wordnet)
    if truths is None or known is None:
        raise OptionError("The truth names no object. Pass --truth with the objects of these pictures.")
    if general.lower() != "none" and known.of_word(general):
        raise OptionError(f"--general {general} is itself one of the objects. Choose a word that may be said of all.")
    nouns("a dog")  # where there is no pipeline, that shows now
    if not dry_run:
        check_folder(out)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    pictures = _with_truth(items, truths, output)
    learned, others = split(pictures, held, seed)
    if not learned or not others:
        raise OptionError(
            f"{count_of(len(pictures), 'picture')} can be read and have a truth, and with --held {held:g} "
            f"{len(learned)} would be learned from and {len(others)} measured on. Give more pictures, or another share."
        )
    vlm = load_model(model, dtype, device_map, revision, allow_pickle, trust_remote_code, vision_tower)
    output.note(repr(vlm))
    word = None if general.lower() == "none" else general
    if word is not None:
        check_general(vlm, known, word)
    how = asked_of_captions(prompt, prefix, max_new_tokens)

    def tell(what: str, count: int, done: int) -> None:
        if done % 80 == 0 or done == count:
            output.note(f"{what}: {done}/{count} pictures")

    lesson = read_lesson(vlm, learned, known, seed, lambda done: tell("learned from", len(learned), done), **how)
    lines = lesson_lines(lesson, len(others))
    if lesson.captions < FEW:
        lines.append(
            f"{lesson.captions} captions are few to learn from: what is learned from a few hundred breaks as much as "
            "it mends. Give thousands of pictures."
        )
    if dry_run:
        said = {word.name: {"false": word.false, "true": word.true} for word in lesson.words}
        text = "\n".join([*lines, "Nothing was learned, nothing written."])
        output.result(text, event="dry run", captions=lesson.captions, false=lesson.false, words=said)
        return
    for line in lines:
        output.note(line)
    edit = learn(vlm, lesson, known, word, Settings(recall=SPENT * recall, unchanged=1 - SPENT + SPENT * at_least))
    output.note(str(edit))
    proof = ground_captions(
        vlm, edit, others, known, at_least, recall, lambda done: tell("measured on", len(others), done), **how
    )
    written = write_grounding(out, vlm, edit, lesson, proof, typed(sys.argv[1:]), peft)
    if proof.refusal:
        raise EditError(
            f"Refused, and no edit was written: {proof.refusal} {str(written.summary)!r} shows what changed. Give more "
            "pictures, or, where too much changes, lower --at-least or raise --recall if you can live with it."
        )
    output.result(
        f"{written.summary}: CHAIRi {proof['CHAIRi before'].estimate.value:.3f} → "
        f"{proof['CHAIRi after'].estimate.value:.3f}, recall {proof['recall before'].estimate.value:.3f} → "
        f"{proof['recall after'].estimate.value:.3f}, {written.edit}",
        event="done",
        summary=str(written.summary),
        edit=str(written.edit),
        adapter=None if written.adapter is None else str(written.adapter),
    )


def _readable(items: Sequence[Item], output: Output) -> Iterator[tuple[Item, Image.Image]]:
    """Pictures as they are needed, each once: a copy must not be learned from and measured on."""
    from mmneurons.sources.readable import readable
    from mmneurons.vlm.pictures import pixel_digest

    met: set[str] = set()
    for item, picture in readable(items, output.skipped):
        if (own := pixel_digest(picture)) not in met:
            met.add(own)
            yield item, picture


def _with_truth(items: Sequence[Item], truths: Mapping[str, Truth], output: Output) -> list[Shown]:
    """The pictures whose truth is known, each to be read when it is needed."""
    from mmneurons.measures.truth import matched
    from mmneurons.mitigation.lesson import Shown
    from mmneurons.reports.texts import count_of

    found = matched(truths, [item.source for item in items])
    known = [item for item in items if Path(item.source).name in found]
    shown = [Shown(item.source, _opener(item), found[Path(item.source).name]) for item, _ in _readable(known, output)]
    if len(shown) < len(items):
        output.note(
            f"{len(shown)} of {count_of(len(items), 'picture')} can be read, have a truth, and are no copy of another; "
            "the rest is left out."
        )
    return shown


def _opener(item: Item) -> Callable[[], Image.Image]:
    from mmneurons.vlm.pictures import decode_picture

    return lambda: decode_picture(item.read(), item.source)
