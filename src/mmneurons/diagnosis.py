"""What is known of a model, whether its scores are exact on a picture, and what would not work with it.

Nothing is printed here and no check is new: the anatomy was measured when the model was loaded, completeness and the
one-FFN check are those of ``mmneurons.exactness``, where the image tokens lie is what heatmaps use.
"""

from __future__ import annotations

import math
import platform
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import groupby
from typing import Literal

import numpy as np
import torch

from mmneurons.demo import pictures
from mmneurons.errors import AnatomyError, MMNeuronsError, NounPipelineMissingError, OptionError, RecordingError
from mmneurons.exactness import check_neurons, completeness_at
from mmneurons.finders import Contribution, Target
from mmneurons.finding import Finding, find
from mmneurons.heatmaps import Heatmap
from mmneurons.nouns import nouns
from mmneurons.options import check_seed
from mmneurons.recordings import MAX_NEW_TOKENS
from mmneurons.table import visible
from mmneurons.vlm.anatomy import Anatomy, Block, Path
from mmneurons.vlm.decoding import changes_logits
from mmneurons.vlm.geometry import Geometry, ImageGrid, placed
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike, picture_name
from mmneurons.vlm.readout import readout
from mmneurons.vlm.recording import Recording, end_token_id

__all__ = ["Check", "Diagnosis", "ModelFacts", "PicturePart", "Remark", "Sample", "diagnose"]

BOUND = 1e-4
"""The largest error of a float32 model, of a logit's size and at least of one nat."""

HALF_BOUND = 0.25
"""As ``BOUND`` in half precision, where rounding was at most a hundredth of the logit in the models it was tried on."""

REFERENCES = (None, "vocabulary", "distribution")
DRAWN = 3
"""How many neurons of each block are drawn for the one-FFN check, beside the one with the largest score."""

_NO_NUMBER = "the error is no number: weights or activations are infinite or not a number"

TEXT_TOKENS = 8
WIDTH = 100


@dataclass(frozen=True)
class ModelFacts:
    """What a model is.

    Attributes:
        name: what it was loaded from.
        kind: its class in transformers.
        family: its ``model_type``.
        parameters: how many numbers it has; what is shared counts once.
        dtype: of the write sites.
        devices: where its parameters are.
        text: its language model in words.
        vision: its vision tower in words.
        tied: the head is the input embedding.
    """

    name: str
    kind: str
    family: str
    parameters: int
    dtype: str
    devices: tuple[str, ...]
    text: str
    vision: str
    tied: bool


@dataclass(frozen=True)
class PicturePart:
    """A grid of image tokens and the part of the picture that it covers.

    Attributes:
        rows: how many tokens stand one above the other.
        columns: how many stand side by side.
        part: left, upper, right and lower edge, from 0 to 1 of the picture's width and height.
    """

    rows: int
    columns: int
    part: tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """What the model was tested on.

    Attributes:
        picture: what it is called; None where there was text alone.
        size: its width and height in pixels.
        caption: what the model said of it.
        ended: the caption ended by itself, not at the limit of tokens.
        prompt_tokens: the length of the prompt, image tokens included.
        image_tokens: how many of them are the picture's.
        first: the position of the first image token, from 0.
        last: the position of the last one.
        grids: how they lie in the picture.
        seen: the share of the picture that some token sees.
        no_heatmap: why there are no heatmaps; empty where there are.
        step: of the token whose logit was checked.
        token: that token, spelt out.
    """

    picture: str | None
    size: tuple[int, int] | None
    caption: str
    ended: bool
    prompt_tokens: int
    image_tokens: int
    first: int | None
    last: int | None
    grids: tuple[PicturePart, ...]
    seen: float | None
    no_heatmap: str
    step: int
    token: str


@dataclass(frozen=True)
class Check:
    """One check that scores are exact.

    Attributes:
        name: what was checked.
        error: relative to the logit, or absolute where the logit is smaller than 1; None where the check did not run or
            the error is no number.
        bound: the largest error that is let pass; far larger in half precision, where the error is rounding.
        passed: whether it passed.
        detail: where the largest error was, or what went wrong.
    """

    name: str
    error: float | None
    bound: float
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Remark:
    """Something that works, works partly, or would not work.

    Attributes:
        what: it is about.
        works: whether it works.
        because: why not, or with what limits.
        do: what to do about it.
    """

    what: str
    works: Literal["yes", "partly", "no"]
    because: str = ""
    do: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found.

    Attributes:
        model: what the model is.
        anatomy: where its parts are, with the gains that were measured when it was loaded.
        sample: what it was tested on; None where nothing could be recorded.
        checks: whether scores are exact there.
        remarks: what works and what would not.
        seconds: what each step took, without loading.
        versions: of Python and of the packages that matter.
    """

    model: ModelFacts
    anatomy: Anatomy
    sample: Sample | None
    checks: tuple[Check, ...]
    remarks: tuple[Remark, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        anatomy = self.anatomy
        content = {
            "ok": self.ok,
            "model": asdict(self.model),
            "blocks": [asdict(block) for block in anatomy.blocks],
            "entry": asdict(anatomy.entry),
            "carriers": [asdict(norm) for norm in anatomy.carriers],
            "hidden": anatomy.hidden,
            "norm": None if anatomy.norm is None else asdict(anatomy.norm),
            "head": asdict(anatomy.head),
            "sample": None if self.sample is None else asdict(self.sample),
            "checks": [asdict(check) for check in self.checks],
            "remarks": [asdict(remark) for remark in self.remarks],
            "seconds": self.seconds,
            "versions": self.versions,
        }
        return {name: _plain(value) for name, value in content.items()}

    def lines(self) -> list[str]:
        """All of it as plain text, no line longer than 100 characters."""
        page = [
            *_model_lines(self.model),
            "",
            "Where its neurons are, as measured on a forward",
            *_anatomy_lines(self.anatomy, self.model.tied),
            "",
            *([] if self.sample is None else [*_sample_lines(self.sample), ""]),
            "Are scores exact?",
            *(line for check in self.checks for line in _check_lines(check)),
            "",
            "What works?",
            *(line for remark in self.remarks for line in _remark_lines(remark)),
            "",
            *_wrap("seconds", ", ".join(f"{name} {taken:.1f}" for name, taken in self.seconds.items())),
            *_wrap("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
        ]
        return [visible(line) if line else line for line in page]


def diagnose(vlm: VLM, picture: PictureLike | None = None, seed: int = 0) -> Diagnosis:
    """Tell what a model is made of, check on a picture that its scores are exact, and name what would not work.

    Costs one caption, and one prefill for every block. A model that was wrapped without a processor is tested on text.

    Args:
        vlm: the model.
        picture: what to test it on; by default a bundled one.
        seed: with what the neurons of the one-FFN check are drawn.

    Raises:
        OptionError: the seed is no whole number from 0.
        PictureError: the picture cannot be read.
        RecordingError: a picture was passed for a model without a processor.
    """
    check_seed(seed)
    if picture is not None and vlm.processor is None:
        raise RecordingError(
            "This model was wrapped without a processor, so it cannot be tested on a picture. Pass mmn.wrap(model, "
            "processor), or no picture."
        )
    seconds: dict[str, float] = {}
    facts = _facts(vlm)
    try:
        with _timed(seconds, "caption"):
            found = _find(vlm, pictures()[0].path if picture is None else picture)
    except (RecordingError, OptionError) as error:
        refused = Remark("recording captions", "no", _first_line(error))
        failed = Check("a caption is recorded", None, _bound(vlm), passed=False, detail=_first_line(error))
        return Diagnosis(facts, vlm.anatomy, None, (failed,), (refused, *_remarks(vlm)), seconds, _versions())
    step = _content_step(found.recording)
    with _timed(seconds, "completeness"):
        checks = [_completeness(found, step, against) for against in REFERENCES]
    with _timed(seconds, "neurons"):
        checks.append(_single_neurons(found, step, seed))
    with _timed(seconds, "image tokens"):
        name = f"{pictures()[0].path.name} (bundled)" if picture is None else picture_name(picture)
        sample = _sample(found, name, step)
    remarks = (_score_remark(checks), *_sample_remarks(found, sample), *_remarks(vlm))
    return Diagnosis(facts, vlm.anatomy, sample, tuple(checks), remarks, seconds, _versions())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _first_line(error: MMNeuronsError) -> str:
    return str(error).partition("\n")[0]


def _find(vlm: VLM, picture: PictureLike) -> Finding:
    """What the model says of the picture, or without a processor of a few tokens of text; no word explained yet.

    Scores are of the raw logit: what is left of them against a reference can be too small for an error to show.
    """
    gates = all(block.gated for block in vlm.anatomy.blocks)
    if vlm.processor is not None:
        return find(vlm, picture, words=[], gates=gates, against=None)
    ordinary = readout(vlm).ordinary.nonzero().flatten()
    tokens = ordinary[torch.linspace(0, len(ordinary) - 1, TEXT_TOKENS + 2).long()[1:-1]]
    return find(vlm, inputs={"input_ids": tokens[None]}, gates=gates, against=None, max_new_tokens=TEXT_TOKENS)


def _content_step(recording: Recording) -> int:
    """The step of the first token of three letters or more: an article has little to do with the picture."""
    for step, (start, end) in enumerate(recording.spans):
        if sum(character.isalpha() for character in recording.caption[start:end]) >= 3:
            return step
    return 0


def _is_exact(vlm: VLM) -> bool:
    return torch.finfo(vlm.dtype).eps <= torch.finfo(torch.float32).eps


def _completeness(found: Finding, step: int, against: str | None) -> Check:
    vlm, recording = found.vlm, found.recording
    target = Target(step, int(recording.token_ids[step]))
    error = completeness_at(vlm, recording, target, against).error
    name = "all parts add up to the logit" + ("" if against is None else f" against the {against}")
    if not math.isfinite(error):
        return Check(name, None, _bound(vlm), passed=False, detail=_NO_NUMBER)
    if not _is_exact(vlm):
        try:
            # the finder knows how much of an error can be rounding here, and refuses what is more
            Contribution(against)(vlm, recording, [target])
        except RecordingError as refusal:
            return Check(name, error, _bound(vlm), passed=False, detail=_first_line(refusal))
    return Check(name, error, _bound(vlm), passed=error <= _bound(vlm))


def _bound(vlm: VLM) -> float:
    return BOUND if _is_exact(vlm) else HALF_BOUND


def _single_neurons(found: Finding, step: int, seed: int) -> Check:
    """Take neurons of every block away one by one: that of the largest score, and some that are drawn."""
    vlm, name = found.vlm, "neurons taken away one by one change the logit by their scores"
    try:
        word = found.at(step)
    except RecordingError as refusal:
        return Check(name, None, _bound(vlm), passed=False, detail=_first_line(refusal))
    generator = torch.Generator().manual_seed(seed)
    places = []
    for index, block in enumerate(vlm.anatomy.blocks):
        largest = int(word.scores[index, : block.width].abs().argmax())
        drawn = torch.randperm(block.width, generator=generator)[:DRAWN].tolist()
        places += [(index, column) for column in dict.fromkeys([largest, *drawn])]
    check = check_neurons(word, places)
    if not math.isfinite(check.error):
        return Check(name, None, _bound(vlm), passed=False, detail=_NO_NUMBER)
    worst = int((check.measured - check.claimed).abs().argmax())
    detail = f"{len(places)} neurons, worst {vlm.anatomy.name(*places[worst])}"
    return Check(name, check.error, _bound(vlm), check.error <= _bound(vlm), detail)


def _sample(found: Finding, name: str, step: int) -> Sample:
    vlm, recording, picture = found.vlm, found.recording, found.picture
    positions = recording.image_positions.tolist()
    limit = MAX_NEW_TOKENS if picture is not None else TEXT_TOKENS
    lie, no_heatmap = None, ""
    try:
        lie = _geometry(found)
    except (AnatomyError, OptionError) as error:
        no_heatmap = _first_line(error)
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    token = int(recording.token_ids[step])
    return Sample(
        picture=None if picture is None else name,
        size=None if picture is None else picture.size,
        caption=found.caption,
        ended=len(recording) < limit or int(recording.token_ids[-1]) in end_token_id(vlm),
        prompt_tokens=recording.inputs["input_ids"].shape[1],
        image_tokens=len(positions),
        first=positions[0] if positions else None,
        last=positions[-1] if positions else None,
        grids=() if lie is None else tuple(_picture_part(grid, lie.size) for grid in lie.grids),
        seen=None if lie is None else _seen(lie),
        no_heatmap=no_heatmap,
        step=step,
        token=f"#{token}" if tokenizer is None else tokenizer.decode([token]),
    )


def _geometry(found: Finding) -> Geometry:
    vlm, tokens = found.vlm, len(found.recording.image_positions)
    if found.picture is None or vlm.processor is None:
        raise OptionError("there is no processor, so there was no picture")
    if not tokens:
        raise OptionError("no token of the prompt is known to stand for a part of the picture")
    return placed(vlm, found.picture.size, tokens)


def _picture_part(grid: ImageGrid, size: tuple[int, int]) -> PicturePart:
    x0, y0, x1, y1 = grid.rectangle
    shares = (x0 / size[0], y0 / size[1], x1 / size[0], y1 / size[1])
    left, upper, right, lower = (min(max(share, 0.0), 1.0) for share in shares)
    return PicturePart(grid.rows, grid.columns, (left, upper, right, lower))


def _seen(lie: Geometry) -> float:
    """The share of the picture's pixels that some token sees."""
    return float(1 - np.isnan(Heatmap(np.zeros(lie.tokens, dtype=np.float32), lie).map()).mean())


def _score_remark(checks: Sequence[Check]) -> Remark:
    if all(check.passed for check in checks):
        return Remark("scores of neurons", "yes")
    return Remark(
        "scores of neurons",
        "no",
        "they are not what they claim to be, as the failed checks show",
        "load the model again, or wrap it again if modules were changed on purpose",
    )


def _sample_remarks(found: Finding, sample: Sample) -> Iterator[Remark]:
    """What showed on the sample."""
    vlm, recording = found.vlm, found.recording
    if sample.picture is None:
        yield Remark(
            "pictures, captions and words",
            "no",
            "the model was wrapped without a processor",
            "pass mmn.wrap(model, processor); without one, find(vlm, inputs={…}) and found.at(step) work",
        )
    else:
        yield Remark("pictures, captions and words", "yes")
    if not sample.ended and sample.picture is not None and end_token_id(vlm):
        yield Remark(
            "the end of captions",
            "partly",
            f"the caption of the test picture did not end within {MAX_NEW_TOKENS} tokens",
            "ask for something short with prompt='…', or raise max_new_tokens",
        )
    yield _heatmap_remark(found, sample)
    if recording.gates is None:
        without = sum(not block.gated for block in vlm.anatomy.blocks)
        yield Remark(
            "activation='gate'",
            "no",
            f"{without} of {len(vlm.anatomy.blocks)} FFNs have no gate, or none that can be heard",
            "keep activation='product', the default",
        )
    else:
        yield Remark("activation='gate'", "yes")
    if recording.forced:
        yield Remark(
            "recording while generating",
            "partly",
            "the checkpoint's generation_config asks for more than one forward a token, or for no cache, so captions "
            "are generated first and recorded by a second forward",
            "nothing has to be done; it is slower",
        )


def _heatmap_remark(found: Finding, sample: Sample) -> Remark:
    name = "heatmaps"
    if sample.no_heatmap:
        return Remark(name, "no", sample.no_heatmap.rstrip("."))
    limits, do = [], []
    if sample.seen is not None and sample.seen < 0.995:
        limits.append(f"image tokens see {sample.seen:.0%} of the test picture; the rest stays dark")
        do.append("crop pictures to the part that the processor takes if that matters")
    if found.recording.image_activations is None:
        limits.append("activations at image tokens are over the budget, so each map costs one more prefill")
        do.append("raise image_budget if there is memory")
    return Remark(name, "partly" if limits else "yes", "; ".join(limits), "; ".join(do))


def _remarks(vlm: VLM) -> Iterator[Remark]:
    """What the model and the environment tell without a sample."""
    try:
        nouns("A dog.")
        yield Remark("nouns of captions", "yes")
    except NounPipelineMissingError as error:
        what, _, do = _first_line(error).partition(" Install one: ")
        yield Remark("nouns of captions", "no", what.rstrip("."), f"install one: {do.rstrip('.')}")
    if not _is_exact(vlm):
        yield Remark(
            "exact scores",
            "partly",
            f"the model computes in {_dtype(vlm)}, so scores add up to its rounding only",
            "load it with dtype='float32' where figures have to add up",
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and all(parameter.device.type == "cpu" for parameter in vlm.model.parameters()):
        yield Remark(
            "speed",
            "partly",
            f"the model is on the CPU, and there is a {accelerator.type} device",
            "load it with device_map='auto'",
        )
    if vlm.processor is not None and not getattr(vlm.processor, "chat_template", None):
        yield Remark(
            "the prompt",
            "partly",
            "the processor has no chat template, so the prompt stands as it is behind the image token",
            "set processor.chat_template to what the model was trained with, or pass prompt='…' in its form",
        )
    yield from _generation_remarks(vlm)


def _generation_remarks(vlm: VLM) -> Iterator[Remark]:
    """What the checkpoint brings along for ``generate``."""

    def asked(name: str) -> object:
        return getattr(vlm.model.generation_config, name, None)

    if not end_token_id(vlm):
        yield Remark(
            "the end of captions",
            "partly",
            "the checkpoint names no token that ends a text",
            "set model.generation_config.eos_token_id, or cut captions with max_new_tokens",
        )
    beams = asked("num_beams")
    if asked("do_sample") or (isinstance(beams, int) and beams > 1):
        habit = "samples" if asked("do_sample") else f"searches with {beams} beams"
        option = "'do_sample': True" if asked("do_sample") else f"'num_beams': {beams}"
        yield Remark(
            "the checkpoint's own way to generate",
            "partly",
            f"it {habit} by default, and captions are greedy here, so that they can be repeated",
            f"pass generation={{{option}}}" + (" and seed=0" if asked("do_sample") else ""),
        )
    if changes := changes_logits(vlm):
        yield Remark(
            "what is said",
            "partly",
            f"the checkpoint changes logits before a token is chosen ({', '.join(changes)}); scores and probabilities "
            "are of the logits before that",
            "unset them in model.generation_config to hear the model alone",
        )


def _facts(vlm: VLM) -> ModelFacts:
    model, config = vlm.model, vlm.model.config
    text = config.get_text_config(decoder=True)
    head = model.get_submodule(vlm.anatomy.head.module).get_parameter("weight")
    embedding = model.get_input_embeddings().get_parameter("weight")
    parameters = list(model.parameters())
    return ModelFacts(
        name=vlm.name,
        kind=type(model).__name__,
        family=str(getattr(config, "model_type", "")),
        parameters=sum(parameter.numel() for parameter in parameters),
        dtype=_dtype(vlm),
        devices=tuple(dict.fromkeys(str(parameter.device) for parameter in parameters)),
        text=(
            f"{getattr(text, 'model_type', 'unknown')}, {len(vlm.anatomy.blocks)} blocks, stream of "
            f"{vlm.anatomy.hidden:,}, vocabulary of {head.shape[0]:,}"
        ),
        vision=_vision(getattr(config, "vision_config", None)),
        tied=head.data_ptr() == embedding.data_ptr(),
    )


def _vision(config: object) -> str:
    if config is None:
        return "none stated"
    stated = [str(getattr(config, "model_type", "unknown"))]
    for key, unit in (("num_hidden_layers", "{:,} blocks"), ("hidden_size", "width {:,}")):
        if isinstance(value := getattr(config, key, None), int):
            stated.append(unit.format(value))
    for key, unit in (("image_size", "pictures of {0} × {0}"), ("patch_size", "patches of {0} × {0}")):
        if isinstance(value := getattr(config, key, None), int):
            stated.append(unit.format(value))
    return ", ".join(stated)


def _dtype(vlm: VLM) -> str:
    return str(vlm.dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("mmneurons", "torch", "transformers")}
    return {"python": platform.python_version(), **packages}


def _plain(value: object) -> object:
    """What JSON has: lists for tuples, None for what is no number."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wrap(label: str, text: str, indent: int = 2, width: int = 13) -> list[str]:
    """A label and a text beside it, in as many lines as that takes."""
    begin = " " * indent + label.ljust(width) + " "
    lines = textwrap.wrap(
        visible(text), WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin), break_on_hyphens=False
    )
    return lines or [begin.rstrip()]


def _model_lines(model: ModelFacts) -> list[str]:
    what = (
        f"{model.kind} ({model.family}), {model.parameters:,} parameters, {model.dtype} on {', '.join(model.devices)}"
    )
    return [
        *textwrap.wrap(visible(model.name), WIDTH),
        *_wrap("model", what),
        *_wrap("text", model.text),
        *_wrap("vision", model.vision),
    ]


def _anatomy_lines(anatomy: Anatomy, tied: bool) -> list[str]:
    lines = []
    for described, group in groupby(enumerate(anatomy.blocks), key=lambda numbered: _describe(numbered[1], anatomy)):
        indices = [index for index, _ in group]
        name = f"L{indices[0]}" if len(indices) == 1 else f"L{indices[0]}–L{indices[-1]}"
        lines += _wrap(name, described)
    head, norm = anatomy.head, anatomy.norm
    cap = "no soft-cap" if head.softcap is None else f"soft-cap {_short(head.softcap)}"
    same = "tied to the input embedding" if tied else "not tied"
    return [
        *_wrap("blocks in", anatomy.blocks[0].module.rpartition(".")[0]),
        *lines,
        *_wrap("entry", _path(anatomy.entry, anatomy)),
        *_wrap("final norm", "none" if norm is None else f"{norm.module}: {norm.kind}, eps {_short(norm.eps)}"),
        *_wrap("head", f"{head.module}: {same}, scale {_short(head.scale)}, {cap}"),
    ]


def _describe(block: Block, anatomy: Anatomy) -> str:
    """A block in words, the same for blocks that are alike."""
    begun = f"{block.module}."
    sites = []
    for site in block.sites:
        gate = "none" if site.gate is None else site.gate.removeprefix(begun)
        count = "" if site.experts is None else f"{site.experts.count} experts, "
        path = _path(site.path, anatomy, begun)
        sites.append(f"{site.module.removeprefix(begun)}, {count}{site.width:,} neurons, {path}; gate {gate}")
    writes = ", ".join(
        f"{write.module.removeprefix(begun)} {_path(write.path, anatomy, begun)}" for write in block.writes
    )
    return f"{'; '.join(sites)}; also writes: {writes or 'nothing'}"


def _path(path: Path, anatomy: Anatomy, begun: str = "") -> str:
    """A path in words."""
    parts = [f"gain {_short(path.gain)}"]
    parts += [f"through {norm.module.removeprefix(begun)}" for norm in path.norms]
    if path.gate is not None:
        parts.append(f"times the sigmoid of {path.gate.module.removeprefix(begun)}")
    if path.carriers < len(anatomy.carriers):
        parts.append("then the norms of the whole stream from there on")
    return " ".join(parts)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _sample_lines(sample: Sample) -> list[str]:
    if sample.picture is None or sample.size is None:
        return ["On a few tokens of text", *_wrap("prompt", f"{sample.prompt_tokens:,} tokens, no picture")]
    where = f"{sample.image_tokens:,} of the picture"
    if sample.first is not None:
        where += f", positions {sample.first:,} to {sample.last:,}"
    grids = "; ".join(_describe_part(part) for part in sample.grids)
    return [
        *textwrap.wrap(visible(f"On {sample.picture}, {sample.size[0]:,} × {sample.size[1]:,} pixels"), WIDTH),
        *_wrap("caption", sample.caption + ("" if sample.ended else " …")),
        *_wrap("checked at", f"token {sample.step}, {sample.token!r}"),
        *_wrap("prompt", f"{sample.prompt_tokens:,} tokens, {where}"),
        *_wrap("image tokens", grids or f"no map: {sample.no_heatmap}"),
    ]


def _describe_part(part: PicturePart) -> str:
    left, upper, right, lower = (f"{share:.0%}" for share in part.part)
    covers = "the whole picture"
    if (left, upper, right, lower) != ("0%", "0%", "100%", "100%"):
        covers = f"{left} to {right} of the width and {upper} to {lower} of the height"
    return f"{part.rows} × {part.columns} over {covers}"


def _check_lines(check: Check) -> list[str]:
    error = "" if check.error is None else f": error {check.error:.1e}, at most {check.bound:g}"
    detail = f" ({check.detail})" if check.detail else ""
    return _wrap("ok" if check.passed else "FAILED", f"{check.name}{error}{detail}", width=6)


def _remark_lines(remark: Remark) -> list[str]:
    because = f": {remark.because}" if remark.because else ""
    do = f". {remark.do[0].upper()}{remark.do[1:]}" if remark.do else ""
    return _wrap(remark.works, f"{remark.what}{because}{do}", width=6)
