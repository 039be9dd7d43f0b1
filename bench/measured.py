"""What every way of ranking neurons gives for a word: its top neurons, and what becomes of the word without them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from zoo.scenes import Scene
from zoo.score import Lexicon

import mmneurons as mmn
from mmneurons.finders import Finder, Random, Target
from mmneurons.interventions import logits_without
from mmneurons.measures.effects import effects

__all__ = ["Measured", "Unit", "find_true_words", "measure"]

READ = 10
ZEROED = 20
BATCH = 8

Unit = tuple[int, int, int]
"""Block, column, and the sign of what the way of ranking took for its activation."""


@dataclass(frozen=True)
class Measured:
    """One word.

    Attributes:
        scene: the number of its scene.
        word: its lemma.
        tokens: how many tokens spell it.
        probability: of its first token.
        units: by way, the ten top neurons.
        fall: by way, of log p of its first token when the top twenty are gone, in nats.
        relative: by way, the same less the mean fall of the runners-up.
    """

    scene: int
    word: str
    tokens: int
    probability: float
    units: Mapping[str, tuple[Unit, ...]]
    fall: Mapping[str, float]
    relative: Mapping[str, float]


def find_true_words(
    vlm: mmn.VLM, drawn: Sequence[Scene], lexicon: Lexicon
) -> Iterator[tuple[int, list[mmn.WordFinding], int]]:
    """For every scene its number, the words that name an object in it, and how many nouns were said in all."""
    for start in range(0, len(drawn), BATCH):
        batch = list(drawn[start : start + BATCH])
        findings = mmn.find(vlm, [scene.image for scene in batch], batch_size=BATCH, image_budget=0, gates=True)
        for index, (scene, found) in enumerate(zip(batch, findings, strict=True), start):
            concepts = [lexicon.said(part.word)[0] for part in found]
            true = [part for part, said in zip(found, concepts, strict=True) if said and set(said) <= set(scene.names)]
            yield index, true, len(found)


def measure(vlm: mmn.VLM, scene: int, parts: Sequence[mmn.WordFinding], ways: Mapping[str, Finder]) -> list[Measured]:
    """Score the words of one finding every way, and take every way's top neurons away in one replay a word."""
    if not parts:
        return []
    recording = parts[0].found.recording
    targets = [Target(part.steps[0], part.token_ids[0]) for part in parts]
    tops: list[dict[str, list[tuple[int, int]]]] = [{} for _ in parts]
    units: list[dict[str, tuple[Unit, ...]]] = [{} for _ in parts]
    for name, finder in ways.items():
        if isinstance(finder, Random):
            finder = replace(finder, seed=scene)
        for part, top, read, scores in zip(parts, tops, units, finder(vlm, recording, targets), strict=True):
            top[name] = replace(part, scores=scores.values).neurons(ZEROED)
            read[name] = tuple((*place, -1 if scores.activations[place] < 0 else 1) for place in top[name][:READ])
    measured = []
    for part, target, top, read in zip(parts, targets, tops, units, strict=True):
        what = effects(logits_without(part, list(top.values())), target.token)
        measured.append(
            Measured(
                scene=scene,
                word=part.word,
                tokens=len(part.token_ids),
                probability=float(recording.log_probabilities[target.step].exp()),
                units=read,
                fall=dict(zip(top, what.fall.tolist(), strict=True)),
                relative=dict(zip(top, what.relative.tolist(), strict=True)),
            )
        )
    return measured
