"""Causal effect (Pan et al. 2024, with our definitions): what becomes of a word without its neurons.

Teacher-forced, at the position that emitted the word, the neurons are put to zero or their output vectors get noise,
and later blocks react: the fall of log p(word), the same relative to the ten runners-up, the rank of the word. At the
other positions of the caption, with the neurons at zero wherever a token is emitted: KL(before ‖ after). And the
caption is generated again with the neurons at zero everywhere: does it still say the word, and how alike is the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from mmneurons.english import are_forms, fold
from mmneurons.errors import OptionError
from mmneurons.interventions import noise_changes
from mmneurons.measures.case import Case, Observation, Place
from mmneurons.measures.controls import matched_neurons, written_norms
from mmneurons.measures.effects import RUNNERS_UP, divergence, effects
from mmneurons.options import check_increasing, check_whole
from mmneurons.recordings import read
from mmneurons.vlm.changes import ALL, Change, changed, zeros
from mmneurons.vlm.recording import LEAN, record_generation
from mmneurons.vlm.replay import caption_logits_with, logits_with
from mmneurons.words import stands_in

__all__ = ["CausalEffect", "regenerated", "rest_likeness"]


@dataclass(frozen=True)
class CausalEffect:
    """See the module.

    Attributes:
        ks: at how many neurons the curve is taken.
        at: at how many the word is looked at further: noise, matched neurons, other positions, regeneration.
        again: finders without whose neurons the caption is generated again; None: all.
        sigma: of the noise, see ``mmneurons.interventions.noisy``.
        regenerate: whether captions are generated again.
        longer: how many tokens longer than the caption those may be; without their neurons some never end.

    Raises:
        OptionError: an option has a value that it cannot have.
    """

    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    at: int = 20
    again: tuple[str, ...] | None = None
    sigma: float = 1.0
    regenerate: bool = True
    longer: int = 8

    def __post_init__(self) -> None:
        check_increasing("ks", self.ks)
        check_whole("at", self.at)
        check_whole("longer", self.longer, 0)
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 <= self.sigma < inf:
            raise OptionError(f"sigma={self.sigma!r} is not possible: it has to be a finite number from 0.")

    @property
    def quantities(self) -> Mapping[str, str]:
        """What it gives."""
        return {
            "fall": "fall of log p(word) in nats, top k at zero where the word was emitted",
            "relative fall": f"the same less the mean fall of the {RUNNERS_UP} runners-up",
            "rank": "rank of the word's token afterwards, 1 the likeliest",
            "noise fall": "fall of log p(word), Gaussian noise on the output vectors of the top k instead",
            "noise relative fall": "the same less the mean fall of the runners-up",
            "matched fall": "fall of log p(word), as many neurons of the same blocks that write as much",
            "matched relative fall": "the same less the mean fall of the runners-up",
            "KL elsewhere": "mean KL at the caption's other positions, top k at zero at every emitting position",
            "still said": "share of captions, generated again with the top k at zero everywhere, that say the word",
            "rest kept": "F1 of the other words of these captions with those of the caption",
        }

    def __call__(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Observation]]:
        """Measure the words of one picture.

        Raises:
            OptionError: there are not so many neurons.
        """
        for case in cases:
            most, real = max(*self.ks, self.at), case.vlm.anatomy.neurons
            if most > real:
                raise OptionError(f"k = {most} is not possible: this model has {real} neurons. Choose fewer.")
            yield from ((case, observation) for observation in self._measure(case))

    def _measure(self, case: Case) -> Iterator[Observation]:
        vlm, recording, target = case.vlm, case.recording, case.target
        widths = [block.width for block in vlm.anatomy.blocks]
        norms = written_norms(vlm, recording, target.step)
        variants: list[list[Change]] = []
        names: list[tuple[str, str, int]] = []
        for finder, ranking in case.rankings.items():
            for k in dict.fromkeys((*self.ks, self.at)):
                names.append((finder, "", k))
                variants.append(zeros(ranking.top(k)))
            names.append((finder, "noise ", self.at))
            variants.append(noise_changes(vlm, ranking.top(self.at), self.sigma, "vector", case.seed))
            names.append((finder, "matched ", self.at))
            variants.append(zeros(matched_neurons(norms, ranking.top(self.at), widths, case.seed)))
        what = effects(logits_with(vlm, recording, target.step, variants), target.token)
        values = zip(names, what.fall.tolist(), what.relative.tolist(), what.rank.tolist(), strict=True)
        for (finder, how, k), fall, relative, rank in values:
            yield Observation(finder, f"{how}fall", k, fall)
            yield Observation(finder, f"{how}relative fall", k, relative)
            if not how:
                yield Observation(finder, "rank", k, float(rank))
        yield from self._elsewhere(case)
        if self.regenerate:
            yield from self._regenerated(case)

    def _elsewhere(self, case: Case) -> Iterator[Observation]:
        others = [step for step in range(len(case.recording)) if step not in case.word.steps]
        tops = [zeros(ranking.top(self.at)) for ranking in case.rankings.values()]
        logits = caption_logits_with(case.vlm, case.recording, tops)
        before = next(logits)[others]
        for finder, after in zip(case.rankings, logits, strict=True):
            mean = float(divergence(before, after[others]).mean()) if others else float("nan")
            yield Observation(finder, "KL elsewhere", self.at, mean)

    def _regenerated(self, case: Case) -> Iterator[Observation]:
        asked = {
            name: ranking.top(self.at)
            for name, ranking in case.rankings.items()
            if self.again is None or name in self.again
        }
        captions = regenerated(case, list(asked.values()), len(case.recording) + self.longer)
        begun = len(case.recording.request.prefix)
        word = case.word.word
        for finder, caption in zip(asked, captions[1:], strict=True):
            yield Observation(finder, "still said", self.at, float(stands_in(caption, begun, word)))
            rest = rest_likeness(captions[0][begun:], caption[begun:], word)
            yield Observation(finder, "rest kept", self.at, rest)


def regenerated(case: Case, sets: Sequence[Sequence[Place]], max_new_tokens: int) -> list[str]:
    """The caption generated again, greedily: as it is, then with each set of neurons at zero at all positions."""
    vlm, request = case.vlm, case.recording.request
    rows = len(sets) + 1
    changes = [replace(change, row=row) for row, own in enumerate(sets, 1) for change in zeros(own)]
    with changed(vlm, changes, ALL, lambda: rows):
        recordings = record_generation(vlm, [request] * rows, max_new_tokens, keep=LEAN)
    return [read(vlm, recording).caption for recording in recordings]


def _tokens(text: str) -> list[str]:
    return "".join(sign if sign.isalnum() else " " for sign in fold(text)).split()


def rest_likeness(before: str, after: str, *words: str) -> float:
    """F1 of the words of two captions, each as often as it stands, without some words; 1 where none is left.

    Args:
        before: a caption, without its prefix.
        after: another one.
        *words: what is left out of both, with its forms; of a phrase each of its words.
    """
    left_out = {own for word in words for own in _tokens(word)}
    counts = []
    for caption in (before, after):
        counts.append(Counter(t for t in _tokens(caption) if not any(are_forms(own, t) for own in left_out)))
    common = (counts[0] & counts[1]).total()
    whole = counts[0].total() + counts[1].total()
    return 1.0 if not whole else 2 * common / whole
