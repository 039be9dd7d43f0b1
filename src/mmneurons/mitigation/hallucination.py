"""Less of what is not there: an edit of the last block, learned where the truth of pictures is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmneurons.edits.directions import carried, covariance, whitened
from mmneurons.edits.edit import SEEN, Delta, Edit
from mmneurons.edits.forms import forms_of
from mmneurons.edits.origin import about, versions
from mmneurons.edits.stack import active
from mmneurons.edits.task import Swap, check_words
from mmneurons.errors import EditError
from mmneurons.measures.objects import Vocabulary
from mmneurons.mitigation.grounding import Settings, Steps, Written, ground
from mmneurons.mitigation.lesson import Lesson
from mmneurons.vlm.inputs import word_ids
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import Readout, readout

__all__ = ["GENERAL", "check_general", "learn"]

GENERAL = "thing"
"""What is said where the model is unsure, by default."""

WHITENING = 0.1
"""ε of the direction of the general word, as in `LeastSquares`."""

NOTHING = 1e-6
"""What share of the largest direction counts for nothing."""


def learn(
    vlm: VLM, lesson: Lesson, known: Vocabulary, general: str | None = GENERAL, settings: Settings | None = None
) -> Edit:
    """Learn an edit of the last block: see ``mmneurons.mitigation.grounding``.

    Args:
        vlm: the model, unedited.
        lesson: what is learned from.
        known: the objects.
        general: the word that is said where the model is unsure; None for none.
        settings: of what is learned.

    Raises:
        EditError: an edit is in force, nothing is said of what is not there, or the general word is none.
    """
    if active(vlm):
        raise EditError("An edit is in force in this model. Revert it first: edits are learned on unedited weights.")
    if not lesson.false:
        raise EditError(
            f"Nothing is said in these {lesson.captions} captions of what is not there, so there is nothing to learn "
            "from. Give more pictures, or pictures of which the model says wrong things."
        )
    settings = settings or Settings()
    if general is None:
        settings = replace(settings, recall=None)
    else:
        check_general(vlm, known, general)
    word = _token(vlm, GENERAL if general is None else general.strip())
    if general is not None:
        # where the general word is said already it is no name that it has to be lifted above
        said = tuple(step for step in lesson.steps if step.mention is not None or step.token != word)
        lesson = replace(lesson, steps=said)
    tokens, spelled = _competing(vlm, lesson, known)
    head = readout(vlm)
    written, steps = _laid_out(vlm, head, lesson, tokens, spelled, word)
    found = ground(steps, written, settings)
    recipe = {
        "title": "less of what is not there",
        "method": "grounding",
        "general": general if found.eased > -float("inf") else None,
        "options": asdict(settings),
        **lesson.asked,
        SEEN: sorted(lesson.seen),
        "captions": lesson.captions,
        "false mentions": lesson.false,
        "versions": versions(),
    }
    used = steps.activations.abs().amax(0) > 0
    return Edit((_delta(vlm, found.vectors(written), used),), recipe, about(vlm))


def check_general(vlm: VLM, known: Vocabulary, general: str) -> None:
    """Refuse a word that cannot be said instead of any name, before any work.

    Raises:
        EditError: the word is an object, cannot be said, is several tokens, or begins as an object's name does: one
            token is lifted, and what the model goes on with behind it is not.
    """
    if known.of_word(general):
        raise EditError(f"{general!r} is itself one of the objects. Choose a word that may be said of all of them.")
    check_words(vlm, Swap(general, None))
    first, *more = word_ids(vlm, general.strip())
    if more:
        raise EditError(f"{general!r} is {1 + len(more)} tokens in this model. Choose a word of one, such as 'thing'.")
    for name in sorted(known.names):
        if any(word_ids(vlm, form.text)[:1] == [first] for form in forms_of(name)):
            raise EditError(f"{general!r} begins with the same token as {name!r}, an object. Choose another word.")


def _token(vlm: VLM, word: str) -> int:
    ids = word_ids(vlm, word)
    if not ids:
        raise EditError(f"{word!r} cannot be said by this model: it has no tokens. Choose another word.")
    return ids[0]


def _competing(vlm: VLM, lesson: Lesson, known: Vocabulary) -> tuple[Int[Tensor, "tokens"], dict[str, frozenset[int]]]:
    """The tokens that names begin with, and those that were said; and by object how its name begins."""
    spelled = {
        name: frozenset(_token(vlm, form.text) for form in forms_of(name))
        for name in sorted({name for step in lesson.steps for name in step.there} & known.names)
    }
    tokens = {step.token for step in lesson.steps}.union(*spelled.values())
    return torch.tensor(sorted(tokens)), spelled


def _laid_out(
    vlm: VLM,
    head: Readout,
    lesson: Lesson,
    tokens: Int[Tensor, "tokens"],
    spelled: Mapping[str, frozenset[int]],
    word: int,
) -> tuple[Written, Steps]:
    """What the logits are read along where the last block writes; and every step with what may be said there."""
    rows, _ = head.rows(torch.cat([tokens, torch.tensor([word])]))
    streams = torch.stack([step.stream for step in lesson.steps])
    states = [(step.stream, step.statistics, step.factors) for step in lesson.steps]
    (through,) = carried(vlm, head, torch.eye(rows.shape[1]), states[:1] * rows.shape[1], [-1])
    (probes,) = carried(vlm, head, rows.mean(0).expand(len(states), -1), states, [-1])
    sizes = probes.norm(dim=-1)
    seen = rows @ through
    # what lifts all tokens lifts the general word above none, so names count with their mean
    names = rows[:-1].T @ rows[:-1] / len(tokens)
    lift = whitened(seen[-1], through, covariance(head) + names, WHITENING)
    logits = torch.cat([head.normalize(part) @ rows.T for part in streams.split(512)])
    if head.bias is not None:
        logits += head.scale * head.bias.float().cpu()[torch.cat([tokens, torch.tensor([word])])]
    place = {token: index for index, token in enumerate(tokens.tolist())}
    wanted = torch.zeros(len(lesson.steps), len(tokens), dtype=torch.bool)
    right = wanted.clone()
    for index, step in enumerate(lesson.steps):
        allowed = {token for name in step.there & spelled.keys() for token in spelled[name]}
        missed = {token for name in step.missed & spelled.keys() for token in spelled[name]}
        if step.mention is None or step.mention.there:
            missed = {step.token}
            allowed = {step.token} if step.mention is None else allowed | missed
        wanted[index, [place[token] for token in sorted(missed)]] = True
        right[index, [place[token] for token in sorted(allowed)]] = True
    steps = Steps(
        torch.stack([step.activations for step in lesson.steps]),
        logits[:, :-1],
        logits[:, -1],
        sizes / sizes[0],
        wanted,
        right,
        torch.tensor([step.mention is not None for step in lesson.steps]),
        torch.tensor([step.caption for step in lesson.steps]),
        torch.tensor([len(step.there) for step in lesson.steps]),
    )
    return Written(seen[:-1], lift / float(lift @ seen[-1])), steps


def _delta(vlm: VLM, vectors: Float[Tensor, "width hidden"], used: Bool[Tensor, "width"]) -> Delta:
    """The vectors of columns that are ever active, whole: columns that are seldom active have long ones."""
    columns = used.nonzero().flatten()
    vectors = vectors[columns]
    left, sizes, right = torch.linalg.svd(vectors.double(), full_matrices=False)
    rank = max(1, int((sizes > NOTHING * sizes[0]).sum()))
    return Delta(
        len(vlm.anatomy.blocks) - 1, columns, (left[:, :rank] * sizes[:rank]).float(), right[:rank].float().contiguous()
    )
