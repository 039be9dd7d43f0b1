"""What edits do to hallucination: CHAIR of captions and POPE's questions, before and after, in pairs over pictures.

A swap that was asked for is itself a hallucination: a cat that is said where a dog is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmneurons.edits.edit import Edit
from mmneurons.errors import OptionError
from mmneurons.measures.edit_outcome import Outcome, as_edits, in_force
from mmneurons.measures.figures import Figure, changed
from mmneurons.measures.hallucination import KINDS, Kind, Mentions, Question, ask, chair, mentions, pope
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike

__all__ = ["PopeBefore", "ask_pope", "chair_change", "chair_figures"]


def chair_figures(outcomes: Sequence[Outcome], truths: Sequence[Truth | None], known: Vocabulary) -> list[Figure]:
    """CHAIRs, CHAIRi and recall of captions before and after; none where nothing is known of any picture.

    Args:
        outcomes: of the captions.
        truths: what the picture of each shows; None where that is not known.
        known: the objects that captions may name.
    """
    pairs = [(one, truth) for one, truth in zip(outcomes, truths, strict=True) if truth is not None]
    if not pairs:
        return []
    before = [mentions(one.before, truth, known) for one, truth in pairs]
    after = [mentions(one.after, truth, known) for one, truth in pairs]
    return chair_change(before, after, [truth.file for _, truth in pairs], "CHAIR recall")


def chair_change(
    before: Sequence[Mentions], after: Sequence[Mentions], pictures: Sequence[object], recall: str
) -> list[Figure]:
    """The same of what captions say.

    Args:
        before: of each caption.
        after: likewise.
        pictures: of each caption.
        recall: what recall is called.
    """

    def counted(places: Sequence[int], later: bool) -> list[float]:
        said = after if later else before
        whole = chair([said[place] for place in places])
        return [whole.sentences, whole.instances, whole.recall]

    return changed(("CHAIRs", "CHAIRi", recall), pictures, counted)


@dataclass(frozen=True, eq=False)
class PopeBefore:
    """POPE's questions, and how the unedited model answers them.

    Attributes:
        vlm: the model.
        pictures: by file name.
        questions: what is asked.
        before: whether each was answered with yes.
    """

    vlm: VLM
    pictures: Mapping[str, PictureLike]
    questions: tuple[Question, ...]
    before: tuple[bool, ...]

    def figures(self, edits: Edit | Sequence[Edit]) -> list[Figure]:
        """Accuracy by kind of question, and the share of yes, before and with edits in force."""
        with in_force(self.vlm, as_edits(edits)):
            after = ask(self.vlm, self.pictures, self.questions)
        return self.compared(after)

    def compared(self, after: Sequence[bool]) -> list[Figure]:
        """The same for answers that were had."""
        found: list[Figure] = []
        for kind in KINDS:
            places = [place for place, one in enumerate(self.questions) if one.kind == kind]
            if places:
                found += self._compared(places, after, f"POPE {kind} accuracy", kind)
        return found + self._compared(range(len(self.questions)), after, "POPE share of yes", None)

    def _compared(self, places: Sequence[int], after: Sequence[bool], name: str, kind: Kind | None) -> list[Figure]:
        def counted(chosen: Sequence[int], later: bool) -> list[float]:
            own = [places[place] for place in chosen]
            answers = after if later else self.before
            whole = pope([self.questions[place] for place in own], [answers[place] for place in own])
            return [whole.yes_ratio if kind is None else whole.accuracy]

        return changed((name,), [self.questions[place].file for place in places], counted)


def ask_pope(vlm: VLM, pictures: Mapping[str, PictureLike], questions: Sequence[Question]) -> PopeBefore:
    """Ask the unedited model.

    Raises:
        OptionError: there are no questions, or one is about a picture that is not there.
    """
    if not questions:
        raise OptionError("There are no questions. Pass pictures whose truth names several objects.")
    if missing := [one.file for one in questions if one.file not in pictures]:
        raise OptionError(f"A question is about {missing[0]}, which is none of the pictures. Name it among them.")
    return PopeBefore(vlm, pictures, tuple(questions), tuple(ask(vlm, pictures, questions)))
