"""How good an edit is, or several together: does it do what was asked for, elsewhere too, and nothing else?

What was asked for:

- *reliability*: share of the captions that it was learned from whose request is met: no form of the source is said, and
  the target is.
- *generality*: the same over other pictures whose captions said the source; *generality, other prompts*: the same
  where such a picture was asked about in other words.
- *rest kept*: of swapped captions, F1 of all words but source and target.
- *portability*: share of the user's questions that are answered as follows from the edit.

And nothing else, over captions that said neither source nor target, of pictures that show neither as far as is known
(where a word is only not to be said, over captions that did not say it):

- *unchanged*: share that are the same word for word; *likeness*: F1 of their words.
- *intrusion*: share that say the target now.
- *same top 1*, *same top 10*: share of their steps with the same most likely token, and with the same ten in the same
  order (MMEdit); *KL*: before ‖ after, nats a step; teacher-forced on the unedited captions.
- *text: …*: the same of answers to prompts without a picture.
- *nats a token*: how surprised the unedited model is, of all captions, and of these (*elsewhere*).
- *CHAIR* and *POPE*: see ``mmneurons.measures.edit_hallucination``.

Of several edits in force each is judged by its own request, and what must stay is what concerns none of them. Shares
of captions after the edit have 95 % score intervals (Wilson); means, and what has a before and an after, have bootstrap
intervals over pictures: ``mmneurons.measures.figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmneurons.edits.edit import Edit
from mmneurons.edits.task import Swap
from mmneurons.errors import OptionError
from mmneurons.measures.causal_effect import rest_likeness
from mmneurons.measures.edit_hallucination import PopeBefore, chair_figures
from mmneurons.measures.edit_outcome import Outcome, Pool, as_edits, swap_of
from mmneurons.measures.figures import Figure, before_after, mean, share
from mmneurons.measures.fluency import surprises
from mmneurons.measures.hops import Hops
from mmneurons.measures.intervals import Estimate
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth

__all__ = ["Figure", "Quality", "edit_quality", "figures"]


@dataclass(frozen=True, eq=False, repr=False)
class Quality:
    """What was measured of an edit, or of several together.

    Attributes:
        figures: see this module.
        outcomes: caption by caption, by the name of their pool; of several edits those of the first come first.
    """

    figures: tuple[Figure, ...]
    outcomes: Mapping[str, Sequence[Outcome]]

    def __getitem__(self, name: str) -> Estimate:
        """A figure by its name.

        Raises:
            OptionError: it was not measured.
        """
        for one in self.figures:
            if one.name == name:
                return one.estimate
        raise OptionError(f"{name!r} was not measured. There are: {', '.join(one.name for one in self.figures)}.")

    def __repr__(self) -> str:
        width = max((len(one.name) for one in self.figures), default=0)
        lines = [f"{one.name:<{width}}  {one.estimate:.3g}  n = {one.captions}" for one in self.figures]
        return "\n".join(lines) or "Quality()"

    def as_json(self) -> dict[str, object]:
        """The figures, to be kept with the edit."""
        return {one.name: one.as_json() for one in self.figures}


def edit_quality(
    edits: Edit | Sequence[Edit],
    others: Pool,
    learned: Pool | None = None,
    shown: Sequence[frozenset[str]] | None = None,
    *,
    rephrased: Pool | None = None,
    texts: Pool | None = None,
    hops: Hops | None = None,
    truths: Sequence[Truth | None] | None = None,
    known: Vocabulary | None = None,
    pope: PopeBefore | None = None,
    fluency: bool = True,
) -> Quality:
    """Measure an edit, or several in force together.

    Args:
        edits: which; none of them is in force.
        others: captions of other pictures: those that say the source, and those that do not.
        learned: captions that the edits were learned from; None where that is not to be measured.
        shown: what each of the other pictures shows, where that is known: a target that is there does not intrude.
        rephrased: captions of other pictures, asked for in other words, that say a source.
        texts: answers to prompts without a picture: ``mmneurons.measures.text_prompts``.
        hops: questions whose answers follow from the edits: ``mmneurons.measures.hops``.
        truths: the same as ``shown``, for CHAIR; None for pictures of which nothing is known.
        known: the objects that captions may name, for CHAIR.
        pope: questions after objects: ``mmneurons.measures.edit_hallucination``.
        fluency: whether the unedited model is asked how surprising the captions are.

    Raises:
        OptionError: these are no edits or no pools of captions, or there is not one truth for each caption.
        EditError: an edit is in force, or one of these does not fit the model.
    """
    pools = {"others": others, "learned": learned, "rephrased": rephrased, "texts": texts}
    for name, pool in pools.items():
        if not isinstance(pool, Pool) and (pool is not None or name == "others"):
            raise OptionError(f"{name} takes a pool of captions: Pool(vlm, mmn.record(vlm, pictures)).")
    for name, given in (("shown", shown), ("truths", truths)):
        if given is not None and len(given) != len(others):
            raise OptionError(f"{name} has {len(given)} entries for {len(others)} captions. Pass one for each.")
    chosen = as_edits(edits)
    outcomes: dict[str, Sequence[Outcome]] = {
        name: _outcomes(chosen, pool, fluency and name == "others") for name, pool in pools.items() if pool is not None
    }
    found = figures(chosen, outcomes, shown)
    if hops is not None:
        answers = hops.answers(chosen)
        found += hops.figures(answers)
        outcomes["hops"] = hops.pool.judged(answers, swap_of(chosen[0]))
    if truths is not None and known is not None:
        found += chair_figures(outcomes["others"][: len(others)], truths, known)
    if pope is not None:
        found += pope.figures(chosen)
    return Quality(tuple(found), outcomes)


def _outcomes(edits: Sequence[Edit], pool: Pool, fluency: bool) -> list[Outcome]:
    after = pool.afterwards(edits)
    found = [pool.judged(after, swap_of(edit)) for edit in edits]
    if fluency:
        told = surprises(pool, after)
        found = [[replace(one, surprise=own) for one, own in zip(part, told, strict=True)] for part in found]
    return [one for part in found for one in part]


def figures(
    edits: Edit | Sequence[Edit],
    outcomes: Mapping[str, Sequence[Outcome]],
    shown: Sequence[frozenset[str]] | None = None,
) -> list[Figure]:
    """The figures of captions' outcomes.

    Args:
        edits: one edit; its outcomes may be those of several like it, put together. Or several that were in force
            together.
        outcomes: by the name of their pool: others, learned, rephrased, texts; of several edits those of the first
            come first.
        shown: what the picture of each of the other captions shows.
    """
    chosen = as_edits(edits)
    swaps = [swap_of(edit) for edit in chosen]
    found = []
    learned = _met(outcomes.get("learned", ()), swaps)
    if learned:
        found.append(_share("reliability", learned))
    others = outcomes["others"]
    said = _met(others, swaps)
    found.append(_share("generality", said))
    if rephrased := _met(outcomes.get("rephrased", ()), swaps):
        found.append(_share("generality, other prompts", rephrased))
    rest = _untouched(others, swaps, shown)
    found += _locality("", rest, any(swap.to is not None for swap in swaps))
    found.append(mean("likeness", [_likeness(one) for one in rest], _pictures(rest)))
    swapped = [(one, swap) for one, swap in said if one.swapped]
    if swapped:
        kept = [_likeness(one, swap) for one, swap in swapped]
        found.append(mean("rest kept", kept, _pictures([one for one, _ in swapped])))
    articled = [(one, swap.articles_in(one.after, one.begun)) for one, swap in swapped]
    if articled := [(one, fits) for one, fits in articled if fits]:
        found.append(share("articles fit", [all(fits) for _, fits in articled], _pictures([o for o, _ in articled])))
    if "texts" in outcomes:
        found += _locality("text: ", _untouched(outcomes["texts"], swaps, None), intrudes=False)
    every = others[: len(others) // len(swaps)] if len(swaps) > 1 else others
    return [*found, *_fluency("nats a token", every), *_fluency("nats a token elsewhere", rest)]


def _met(outcomes: Sequence[Outcome], swaps: Sequence[Swap]) -> list[tuple[Outcome, Swap]]:
    """The captions that said a source, each with the request about it."""
    return [
        (one, swap) for part, swap in zip(_parts(outcomes, len(swaps)), swaps, strict=True) for one in part if one.said
    ]


def _parts(outcomes: Sequence[Outcome], count: int) -> list[Sequence[Outcome]]:
    if len(outcomes) % count:
        raise OptionError(f"{len(outcomes)} outcomes cannot be those of {count} edits over the same captions.")
    size = len(outcomes) // count
    return [outcomes[part * size : (part + 1) * size] for part in range(count)]


def _untouched(
    outcomes: Sequence[Outcome], swaps: Sequence[Swap], shown: Sequence[frozenset[str]] | None
) -> list[Outcome]:
    """The captions that must stay: none of the edits concerns them, nor, as far as is known, their pictures."""
    parts = _parts(outcomes, len(swaps))
    there = list(shown) if shown is not None else [frozenset()] * len(parts[0])
    found = []
    for own, seen in zip(zip(*parts, strict=True), there, strict=True):
        # of a swap a caption that says the target, and a picture that shows either, are no test of what must stay
        concerned = any(
            one.said or (swap.to is not None and (one.said_target or bool({swap.source, swap.to} & seen)))
            for one, swap in zip(own, swaps, strict=True)
        )
        if not concerned:
            found.append(replace(own[0], intruded=any(one.intruded for one in own)))
    return found


def _locality(kind: str, rest: Sequence[Outcome], intrudes: bool) -> list[Figure]:
    pictures = _pictures(rest)
    found = [share(f"{kind}unchanged", [one.unchanged for one in rest], pictures)]
    if intrudes:
        found.append(share(f"{kind}intrusion", [one.intruded for one in rest], pictures))
    compared = [(one, one.agreement) for one in rest if one.agreement is not None]
    if compared:
        pictures = _pictures([one for one, _ in compared])
        found.append(mean(f"{kind}same top 1", [own.top for _, own in compared], pictures))
        found.append(mean(f"{kind}same top 10", [own.top_ten for _, own in compared], pictures))
        found.append(mean(f"{kind}KL", [own.divergence for _, own in compared], pictures))
    return found


def _fluency(name: str, outcomes: Sequence[Outcome]) -> list[Figure]:
    told = [(one, one.surprise) for one in outcomes if one.surprise is not None]
    if not told:
        return []
    before, after = [own.before for _, own in told], [own.after for _, own in told]
    return before_after(name, before, after, _pictures([one for one, _ in told]))


def _share(name: str, found: Sequence[tuple[Outcome, Swap]]) -> Figure:
    return share(name, [one.swapped for one, _ in found], _pictures([one for one, _ in found]))


def _pictures(outcomes: Sequence[Outcome]) -> list[object]:
    """What the captions of one picture have in common."""
    return [one.picture or place for place, one in enumerate(outcomes)]


def _likeness(one: Outcome, swap: Swap | None = None) -> float:
    """Of what was said before and after, without what a request is about; the prefix is said either way."""
    words = [] if swap is None else [swap.source, *([] if swap.to is None else [swap.to])]
    return rest_likeness(one.before[one.begun :], one.after[one.begun :], *words)
