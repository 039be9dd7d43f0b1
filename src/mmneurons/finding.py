"""From a picture to the neurons behind the words of its caption.

::

    image + prompt ──generate once, with its cache──▶ caption ──▶ a word and the steps that emitted it
                          │ activations of every FFN neuron                    │
                          ▼                                                    ▼
                      Recording ───────────────▶ finder: one score per neuron ──▶ top neurons
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal, Unpack, cast, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmneurons.errors import OptionError, WordNotFoundError
from mmneurons.finders import FINDERS, Contribution, Finder, Scores, Target, make_finder, score_all, takes_seed
from mmneurons.finders.contribution import ANOTHER_WORD
from mmneurons.heatmaps import Heatmap
from mmneurons.neurons import output_vectors
from mmneurons.options import named_words, refuse_unknown
from mmneurons.promotion import PromotedBy, promoted_tokens
from mmneurons.recordings import RecordOptions, as_list, is_many, record_pictures, spell
from mmneurons.table import NeuronRow, NeuronTable, full_note
from mmneurons.vlm.geometry import placed
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike, open_picture
from mmneurons.vlm.recording import (
    Recording,
    image_activations,
)
from mmneurons.words import Tokenizer, Word, find_words, same_word, stands_in, token_spans

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Explained", "FindOptions", "Finding", "Occurrence", "WordFinding", "find"]

Explained = Literal["first", "last", "sum"]

Missing = Literal["raise", "skip"]

Occurrence = Literal["all", "first"]

SCORED_AT_ONCE = 16
"""For how many recordings the write sites and the head are read once, however they were batched."""


@dataclass(frozen=True, eq=False)
class WordFinding:
    """The neurons behind one word.

    Attributes:
        word: what it is called: the lemma of a noun, the surface form of a word that was named.
        span: where it stands in the caption, in characters.
        steps: indices into ``recording.token_ids`` of the tokens that spell it.
        token_ids: these tokens.
        log_probability: of these tokens together, natural logarithm, before any logits processor.
        scores: float32 on the CPU; units that a narrower block does not have are 0.
        activations: of every neuron at the position that emitted the (first) explained token, as the finder took them.
        targets: the tokens that are explained.
        total: what the scores are shares of; None where they are no shares.
        note: what the scores are read against, and what is approximate in them.
        found: the finding that it is a part of.
        order: block and column of neurons that were chosen as a set, one after another; they come first.
    """

    word: str
    span: tuple[int, int]
    steps: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probability: float
    scores: Float[Tensor, "blocks width"]
    activations: Float[Tensor, "blocks width"]
    targets: tuple[Target, ...]
    total: float | None
    note: str
    found: Finding
    order: tuple[tuple[int, int], ...] = ()

    def neurons(self, k: int) -> list[tuple[int, int]]:
        """The block and the column of the k neurons with the highest scores, highest first.

        Neurons that were chosen as a set come before all others, in the order in which they were chosen.
        """
        if not isinstance(k, int):
            raise OptionError(f"How many neurons is a whole number, not {k!r}.")
        real = self.found.vlm.anatomy.neurons
        if not 1 <= k <= real:
            raise OptionError(f"There are {real} neurons; the best {k} of them cannot be listed.")
        widths = [block.width for block in self.found.vlm.anatomy.blocks]
        return Scores(self.scores, self.activations, self.total, self.note, self.order).best(k, widths)

    def top(self, k: int = 10, promotes: int = 10, by: PromotedBy = "cosine") -> NeuronTable:
        """The k neurons with the highest scores, or a set that was chosen, in the order in which it was.

        Where k is more than the set holds, those behind it are marked, and the note says so. What neurons promote is
        read from the model's weights as they are when this is called.

        Args:
            k: how many neurons.
            promotes: how many tokens to name for each.
            by: ``"cosine"`` or ``"product"``, see ``mmneurons.promotion``.

        Raises:
            OptionError: there are not so many neurons.
        """
        places = self.neurons(k)
        vlm = self.found.vlm
        activations = [float(self.activations[place]) for place in places]
        signs = torch.tensor([-1.0 if activation < 0 else 1.0 for activation in activations])
        tokens = promoted_tokens(vlm, output_vectors(vlm, places) * signs[:, None], promotes, by)
        rows = tuple(
            NeuronRow(
                rank=rank,
                neuron=vlm.anatomy.name(*place),
                layer=place[0],
                expert=vlm.anatomy.place(*place)[1],
                unit=vlm.anatomy.place(*place)[2],
                score=float(self.scores[place]),
                share=self.share(float(self.scores[place])),
                activation=activation,
                promotes=promoted,
                outside=bool(self.order) and place not in self.order,
            )
            for rank, (place, activation, promoted) in enumerate(zip(places, activations, tokens, strict=True))
        )
        return NeuronTable(f"{self.word!r} in {self.found.caption!r}", rows, full_note(self.note_of(k), self.total))

    def note_of(self, k: int) -> str:
        """What stands below the first k neurons: the note, and how many of them stand behind a set."""
        size = len(self.order)
        if not size or k <= size:
            return self.note
        return f"{self.note}; the first {size} are the set, the {k - size} behind them are not of it"

    def look(self, rank: int = 0, first: int | None = None) -> Heatmap:
        """Where a neuron looks: its activation at the image tokens, times the sign that it had when the word was said.

        Args:
            rank: which neuron, by score from 0.
            first: instead, the mean over the ``first`` best neurons.

        Raises:
            OptionError: there is no picture, no image token, or no such neuron.
            AnatomyError: which part of the picture an image token shows cannot be told, or each shows the whole.
        """
        found, vlm = self.found, self.found.vlm
        if found.picture is None or vlm.processor is None:
            raise OptionError("There is no picture to look at: inputs were given by hand.")
        count = vlm.anatomy.neurons
        if not isinstance(rank, int) or not 0 <= rank < count:
            raise OptionError(f"A neuron is chosen by its rank, 0 to {count - 1}, not by {rank!r}.")
        places = self.neurons(rank + 1)[rank:] if first is None else self.neurons(first)
        signs = torch.tensor([-1.0 if self.activations[place] < 0 else 1.0 for place in places])
        values = (image_activations(vlm, found.recording, places) * signs[:, None]).mean(0)
        name = vlm.anatomy.name(*places[0]) if first is None else f"mean of the first {first}"
        return Heatmap(
            values=values.numpy().astype(np.float32),
            geometry=placed(vlm, found.picture.size, len(values)),
            title=f"{self.word}: {name}",
            source="recording" if found.recording.image_activations is not None else "second prefill",
        )

    def heatmap(self, rank: int = 0, first: int | None = None) -> Image.Image:
        """The picture with where a neuron looks painted over it. Arguments and errors as in ``look``."""
        look = self.look(rank, first)
        assert self.found.picture is not None
        return look.overlay(self.found.picture)

    def figure(self, neurons: int = 5) -> matplotlib.figure.Figure:
        """The paper's kind of figure: the picture, and where each neuron looks and what it promotes.

        Save it with ``savefig``, or with ``mmneurons.reports.figures.save_figure``, which writes SVG and PNG.

        Args:
            neurons: how many of the best.

        Raises:
            OptionError: there is no picture, or there are not so many neurons.
            ExtraMissingError: matplotlib is not installed.
        """
        from mmneurons.reports.figures import figure, panel_of

        return figure(panel_of(self, neurons))

    def share(self, score: float) -> float | None:
        """A score over what scores are shares of; None where they are no shares, or of next to nothing."""
        return None if self.total is None or abs(self.total) < 1e-6 else score / self.total

    def __repr__(self) -> str:
        block, column = self.neurons(1)[0]
        return (
            f"WordFinding({self.word!r}, tokens {list(self.token_ids)}, log p {self.log_probability:.2f}, "
            f"first neuron {self.found.vlm.anatomy.name(block, column)})"
        )


@dataclass(frozen=True, eq=False)
class Finding:
    """A recording, its words, and a score for every neuron and word.

    Attributes:
        vlm: the model.
        recording: what the generation left behind.
        caption: the prefix and what was generated, without special tokens; empty without a processor.
        parts: one ``WordFinding`` per word, in caption order.
        picture: the picture as it was opened; None where inputs were given by hand.
        finder: the way of scoring.
        explained: which token of a word is explained.
    """

    vlm: VLM
    recording: Recording
    caption: str
    parts: tuple[WordFinding, ...]
    picture: Image.Image | None
    finder: Finder
    explained: Explained

    @property
    def words(self) -> tuple[str, ...]:
        """The words, in caption order."""
        return tuple(part.word for part in self.parts)

    def __getitem__(self, word: str) -> WordFinding:
        """The first occurrence of a word, or of a form of it, in any case.

        Raises:
            WordNotFoundError: it is not among the words; the message lists them.
        """
        return self.all(word)[0]

    def all(self, word: str) -> tuple[WordFinding, ...]:
        """Every occurrence of a word; where it does not stand itself, of a form of it ("dog" for "dogs").

        Raises:
            WordNotFoundError: it is not among the words; the message lists them.
        """
        if not isinstance(word, str):
            raise WordNotFoundError(f"Words are found by name, not by {word!r}. There are: {', '.join(self.words)}.")
        parts = tuple(part for part in self.parts if part.word == word)
        parts = parts or tuple(part for part in self.parts if same_word(word, self._as_word(part)))
        if not parts:
            there = ", ".join(dict.fromkeys(self.words)) or "none"
            raise WordNotFoundError(
                f"{word!r} is not among the words of {self.caption!r}: {there}. Name it with words=[{word!r}] to "
                "explain any word of the caption, or pass caption='…' to explain one that the model did not say."
            )
        return parts

    def _as_word(self, part: WordFinding) -> Word:
        return Word(part.word, self.caption[slice(*part.span)], *part.span, part.steps)

    def at(self, step: int) -> WordFinding:
        """The neurons behind the token that a step emitted, whatever it spells.

        Raises:
            OptionError: there is no such step, or words were contrasted with another one, which a token cannot be.
        """
        if getattr(self.finder, "against", None) == "word":
            raise OptionError("A token cannot be contrasted with a word. Find again without against='…'.")
        if not 0 <= step < len(self.recording):
            raise OptionError(f"There is no step {step}: steps are 0 to {len(self.recording) - 1}.")
        token = int(self.recording.token_ids[step])
        tokenizer = getattr(self.vlm.processor, "tokenizer", None)
        name = f"#{token}" if tokenizer is None else tokenizer.decode([token])
        ((part,),) = _score([(self, [Word(name, name, 0, 0, (step,))])], None)
        return part

    def figure(self, word: str | None = None, neurons: int = 5) -> matplotlib.figure.Figure:
        """The figure of a word, by default of the first; see ``WordFinding.figure``.

        Raises:
            WordNotFoundError: it is not among the words, or there is none.
        """
        if word is None and not self.parts:
            raise WordNotFoundError(f"No word of {self.caption!r} is explained, so there is none to draw.")
        return (self.parts[0] if word is None else self[word]).figure(neurons)

    def __iter__(self) -> Iterator[WordFinding]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        return f"Finding({self.caption!r}, words: {', '.join(self.words) or 'none'})"


class FindOptions(RecordOptions, total=False):
    """How a caption comes about, and the options of the finder.

    Attributes:
        against: of ``contribution``, ``total``, ``greedy`` and gradients: None, ``"vocabulary"``, ``"distribution"``,
            or another word.
        norm: of ``contribution``: ``"frozen"`` or None.
        activation: of ``contribution``: ``"product"`` or ``"gate"``.
        k: of ``greedy``: how many neurons are chosen.
        handful: of ``greedy``: how many at a time.
        choose_by: of ``greedy`` and ``ablation``: ``"total"`` or ``"contribution"``.
        steps: of ``integrated_gradients``.
        candidates: of ``ablation`` and ``log_probability_increase``: for how many neurons the score is computed whole.
    """

    against: str | None
    norm: Literal["frozen"] | None
    activation: Literal["product", "gate"]
    k: int
    handful: int
    choose_by: Literal["total", "contribution"]
    steps: int
    candidates: int | None


@overload
def find(
    vlm: VLM,
    images: PictureLike | None = None,
    *,
    words: Sequence[str] | None = None,
    finder: str | Finder = "contribution",
    token: Explained = "first",
    missing: Missing = "raise",
    occurrence: Occurrence = "all",
    **options: Unpack[FindOptions],
) -> Finding: ...
@overload
def find(
    vlm: VLM,
    images: list[PictureLike] | tuple[PictureLike, ...],
    *,
    words: Sequence[str] | None = None,
    finder: str | Finder = "contribution",
    token: Explained = "first",
    missing: Missing = "raise",
    occurrence: Occurrence = "all",
    **options: Unpack[FindOptions],
) -> list[Finding]: ...
def find(
    vlm: VLM,
    images: PictureLike | list[PictureLike] | tuple[PictureLike, ...] | None = None,
    *,
    words: Sequence[str] | None = None,
    finder: str | Finder = "contribution",
    token: Explained = "first",
    missing: Missing = "raise",
    occurrence: Occurrence = "all",
    **options: Unpack[FindOptions],
) -> Finding | list[Finding]:
    """Find the neurons behind the words of a picture's caption.

    Args:
        vlm: the model.
        images: one picture, or a list of them: a path, a PIL image or an array.
        words: the words to explain. By default the nouns of the caption.
        finder: how neurons are scored: a name of ``mmneurons.finders.FINDERS``, or a finder.
        token: which token of a word is explained: its ``"first"``, its ``"last"``, or the ``"sum"`` over all, each at
            its own emitting position with its own reference. A contrast with another word (``against="cat"``) explains
            the first token where the two differ instead.
        missing: what to do where a word in ``words`` is not in a caption: ``"raise"``, or ``"skip"`` it, which leaves
            that finding without it. Likewise where a word cannot be contrasted with ``against`` in a caption.
        occurrence: of a word that a caption says more than once: ``"all"``, or the ``"first"`` alone.
        **options: see ``FindOptions`` and ``RecordOptions``.

    Returns:
        One finding, or a list of them for a list of pictures.

    Raises:
        OptionError: an option has a value that it cannot have.
        PictureError: a picture cannot be read.
        RecordingError: the generation cannot be recorded as asked.
        WordNotFoundError: a word in ``words`` is not in the caption.
        NounPipelineMissingError: nouns are wanted and no spaCy pipeline is installed.
    """
    if token not in ("first", "last", "sum"):
        raise OptionError(f"token={token!r} is not possible. Choose 'first', 'last' or 'sum'.")
    if missing not in ("raise", "skip"):
        raise OptionError(f"missing={missing!r} is not possible. Choose 'raise' or 'skip'.")
    if occurrence not in ("all", "first"):
        raise OptionError(f"occurrence={occurrence!r} is not possible. Choose 'all' or 'first'.")
    words = named_words(words)
    _check_options(finder, options)
    asked = {name: value for name, value in options.items() if name in RecordOptions.__annotations__}
    scorer, contrast = _scorer(finder, {name: value for name, value in options.items() if name not in asked}, options)
    pictures = None if images is None else [open_picture(image) for image in as_list(images)]
    if isinstance(scorer, Contribution) and scorer.activation == "gate":
        asked["gates"] = True
    recordings = record_pictures(vlm, pictures, **cast(RecordOptions, asked))
    bare = [
        Finding(vlm, recording, recording.caption, (), picture, scorer, token)
        for recording, picture in zip(recordings, [None] if pictures is None else pictures, strict=True)
    ]
    findings = []
    for start in range(0, len(bare), SCORED_AT_ONCE):
        part = bare[start : start + SCORED_AT_ONCE]
        batch = [(found, _words(found, words, missing, contrast)) for found in part]
        if occurrence == "first":
            batch = [(found, list({word.text: word for word in reversed(own)}.values())[::-1]) for found, own in batch]
        scored = _score(batch, contrast)
        findings += [replace(found, parts=tuple(parts)) for (found, _), parts in zip(batch, scored, strict=True)]
    return findings if is_many(images) else findings[0]


def _words(bare: Finding, wanted: Sequence[str] | None, missing: Missing, contrast: str | None) -> Sequence[Word]:
    if bare.vlm.processor is None:
        if wanted:
            raise OptionError("Words need a processor; without one use found.at(step).")
        return ()
    begun = len(bare.recording.request.prefix)
    if wanted is not None and missing == "skip":
        wanted = [name for name in wanted if stands_in(bare.caption, begun, name)]
    words = find_words(bare.caption, begun, bare.recording.spans, wanted)
    if contrast is not None and missing == "skip":
        words = [word for word in words if _contrasted(bare, word, contrast) is not None]
    return words


def _score(batch: Sequence[tuple[Finding, Sequence[Word]]], contrast: str | None) -> list[list[WordFinding]]:
    """Score all words of some findings at once; they are of one model and one finder."""
    if not batch:
        return []
    finder, vlm = batch[0][0].finder, batch[0][0].vlm
    targets = [[_targets(bare, word, contrast) for word in words] for bare, words in batch]
    work = [
        (bare.recording, [target for group in groups for target in group])
        for (bare, _), groups in zip(batch, targets, strict=True)
    ]
    parts = []
    for (bare, words), groups, scores in zip(batch, targets, score_all(finder, vlm, work), strict=True):
        rest = iter(scores)
        own = [[next(rest) for _ in group] for group in groups]
        parts.append([_part(bare, *both, contrast) for both in zip(words, groups, own, strict=True)])
    return parts


def _part(
    bare: Finding, word: Word, targets: Sequence[Target], scores: Sequence[Scores], contrast: str | None
) -> WordFinding:
    recording = bare.recording
    if len(scores) > 1 and any(score.order for score in scores):
        raise OptionError(
            f"{bare.finder!r} chooses a set for one token; sets of several tokens cannot be added up. Use "
            "token='first' or 'last'."
        )
    totals = [score.total for score in scores if score.total is not None]
    return WordFinding(
        word=word.text,
        span=(word.start, word.end),
        steps=word.steps,
        token_ids=tuple(int(recording.token_ids[step]) for step in word.steps),
        log_probability=float(recording.log_probabilities[list(word.steps)].sum()),
        scores=torch.stack([score.values for score in scores]).sum(0),
        activations=scores[0].activations,
        targets=tuple(targets),
        total=sum(totals) if len(totals) == len(scores) else None,
        note=scores[0].note if contrast is None else scores[0].note.replace(ANOTHER_WORD, f"against {contrast!r}"),
        found=bare,
        order=scores[0].order,
    )


def _targets(bare: Finding, word: Word, contrast: str | None) -> list[Target]:
    tokens = bare.recording.token_ids
    if contrast is not None:
        target = _contrasted(bare, word, contrast)
        if target is None:
            raise OptionError(
                f"{word.surface!r} and {contrast.strip()!r} cannot be contrasted here: in {bare.caption!r} no token of "
                "the one stands where a different token of the other would. Choose a word with another spelling, or "
                "pass missing='skip' to leave such words out."
            )
        return [target]
    steps = {"first": word.steps[:1], "last": word.steps[-1:], "sum": word.steps}[bare.explained]
    return [Target(step, int(tokens[step])) for step in steps]


def _contrasted(bare: Finding, word: Word, other: str) -> Target | None:
    """The first token where a word and another in its place, tokenised in this context, differ; None if none does."""
    recording, other = bare.recording, other.strip()
    begun = len(recording.request.prefix)
    before, after = bare.caption[begun : word.start], bare.caption[word.end :]
    spelt = spell(bare.vlm, recording.request, before + other + after)
    context = [] if bare.vlm.is_encoder_decoder else recording.inputs["input_ids"][0].tolist()
    _, spans = token_spans(_tokenizer(bare.vlm), context, spelt)
    said = recording.token_ids.tolist()
    differs = next((step for step, (own, new) in enumerate(zip(said, spelt)) if own != new), None)
    # the differing token has to spell both words, not what comes after the shorter one
    ends = len(before) + len(other)
    if differs is None or differs not in word.steps or not min(spans[differs][1], ends) > max(spans[differs][0], 0):
        return None
    return Target(differs, said[differs], spelt[differs])


def _check_options(finder: str | Finder, options: Mapping[str, object]) -> None:
    known = [*RecordOptions.__annotations__, "words", "finder", "token", "missing", "occurrence"]
    if finder in FINDERS:
        known += [field.name for field in fields(FINDERS[str(finder)])]
    elif isinstance(finder, str):
        return
    refuse_unknown(options, known)


def _scorer(finder: str | Finder, own: dict[str, object], options: FindOptions) -> tuple[Finder, str | None]:
    """The finder with its own options, and the word that it contrasts with."""
    against = own.get("against")
    references = ("vocabulary", "distribution")
    if isinstance(against, str) and not against.strip():
        raise OptionError(f"against={against!r} names no word to contrast with.")
    if isinstance(finder, str) and "against" in own and isinstance(against, str) and against not in references:
        if meant := [name for name in references if SequenceMatcher(None, against.lower(), name).ratio() > 0.65]:
            raise OptionError(
                f"against={against!r} looks like {meant[0]!r} misspelt. To contrast with a word so like it, call "
                "the finder with against='word' and targets of your own."
            )
        return make_finder(finder, {**own, "against": "word"}), against
    if "seed" in options and isinstance(finder, str) and takes_seed(finder):
        own["seed"] = options["seed"]
    return make_finder(finder, own), None


def _tokenizer(vlm: VLM) -> Tokenizer:
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    if tokenizer is None:
        raise OptionError("Words need a processor; without one use found.at(step).")
    return tokenizer
