"""Two checks that scores are exact, on the model and the picture at hand.

Completeness: the stream entering block 0, every other write, every neuron and the biases, all carried to the final norm
and read along a direction, add up to the logit. Completeness cannot see permuted neurons, so ``check_neurons`` runs the
model with one activation at zero, holds everything else at what was recorded, and compares the change of the logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finders.contribution import Contribution, directions
from mmneurons.finders.protocol import Finder, Target
from mmneurons.finding import WordFinding
from mmneurons.neurons import Neurons, places_of
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import carry_back, write_paths
from mmneurons.vlm.readout import readout
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import Prefix, prefix, streams_without
from mmneurons.vlm.sites import bias, project

__all__ = ["Completeness", "NeuronCheck", "check_neurons", "check_places", "completeness", "completeness_at"]


@dataclass(frozen=True)
class Completeness:
    """How a logit is made up, all in logits, summed in float64.

    Attributes:
        entry: the share of the stream where it enters block 0.
        writes: the share of every other write (attention).
        neurons: the share of all neurons of all blocks.
        biases: the share of the biases of write sites, norms and head.
        expected: the logit (less its reference), from the stream before the final norm.
    """

    entry: float
    writes: float
    neurons: float
    biases: float
    expected: float

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.entry + self.writes + self.neurons + self.biases

    @property
    def error(self) -> float:
        """|total − expected| / max(1, |expected|)."""
        return abs(self.total - self.expected) / max(1.0, abs(self.expected))


def completeness(word: WordFinding) -> Completeness:
    """Add up everything that was recorded behind a word and compare it with the logit.

    Args:
        word: of a finding, by any finder; the reference is that of ``contribution``, otherwise none. With
            ``token="sum"`` the parts of all tokens are added.
    """
    _check_word(word)
    vlm, recording, against = word.found.vlm, word.found.recording, _reference(word.found.finder)
    parts = [completeness_at(vlm, recording, target, against) for target in word.targets]
    return Completeness(*(sum(getattr(part, field.name) for part in parts) for field in fields(Completeness)))


def completeness_at(vlm: VLM, recording: Recording, target: Target, against: str | None = None) -> Completeness:
    """Add up what was recorded at one step and compare it with the logit.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        target: the step and the token; with ``against="word"`` the other token, too.
        against: as in ``mmneurons.finders.Contribution``.
    """
    head = readout(vlm)
    stream = recording.stream[target.step][None]
    rows, constants = directions(head, recording.logits[target.step][None], [target], against)
    pulled = head.pull_back(rows, stream)[0]
    shift = 0.0 if head.shift is None else float((rows @ head.shift)[0])
    anatomy = vlm.anatomy
    statistics, factors = recording.statistics[target.step][None], recording.factors[target.step][None]
    carried = carry_back(vlm.model, anatomy, pulled[None], statistics, factors)
    neurons, biases = 0.0, float(carried.constants()[0])
    for index, block in enumerate(anatomy.blocks):
        for site in block.sites:
            active = recording.activations[target.step, index, site.columns].double()
            direction = carried.at(site.path)
            neurons += float(project(vlm.model, site, direction, active[None])[0] @ active)
            own = bias(vlm.model, site)
            biases += 0.0 if own is None else float(direction[0] @ own.double())
    written = zip(recording.writes[target.step].double(), write_paths(anatomy), strict=True)
    expected = float((rows.double() * head.normalize(stream).double()).sum()) + float(constants[0]) - shift
    return Completeness(
        entry=float(recording.entry[target.step].double() @ carried.at(anatomy.entry)[0]),
        writes=sum(float(own @ carried.at(path)[0]) for own, path in written),
        neurons=neurons,
        biases=biases + float(constants[0]) + float(head.offset(rows, stream)[0]),
        expected=expected,
    )


@dataclass(frozen=True)
class NeuronCheck:
    """What single neurons did to a logit when they were taken away, and what was claimed.

    Attributes:
        measured: the fall of the logit, everything else held, in logits.
        claimed: the contribution of the neuron.
        expected: the logit.
    """

    measured: Float[Tensor, "neurons"]
    claimed: Float[Tensor, "neurons"]
    expected: float

    @property
    def error(self) -> float:
        """The largest |measured − claimed| / max(1, |logit|)."""
        return float((self.measured - self.claimed).abs().max()) / max(1.0, abs(self.expected))


def check_neurons(word: WordFinding, neurons: Neurons) -> NeuronCheck:
    """Take neurons away one by one, and compare what the logit loses with their scores.

    See ``check_places`` for what is held on the way.

    Args:
        word: of a finding by ``contribution`` with the norm and with whole activations, of one explained token.
        neurons: block and column of each, or their names; for example ``word.neurons(20)`` or ``word.top(20)``.

    Raises:
        OptionError: the scores are no contributions, or add up several tokens; or there are no neurons.
        AnatomyError: there is no such neuron.
    """
    _check_word(word)
    places = places_of(word.found.vlm, neurons)
    finder = word.found.finder
    if not isinstance(finder, Contribution) or finder.norm is None or finder.activation != "product":
        raise OptionError("Only contributions with the norm and whole activations are changes of the logit.")
    if len(word.targets) != 1:
        raise OptionError("The scores of several tokens are added up here: check each with token='first' or found.at.")
    if not places:
        raise OptionError("There are no neurons to check.")
    vlm, recording, target = word.found.vlm, word.found.recording, word.targets[0]
    before = prefix(vlm, recording, target.step)
    size = before.rows - 1
    checks = [
        check_places(vlm, recording, target, places[start : start + size], word.scores, finder.against, before)
        for start in range(0, len(places), size)
    ]
    return NeuronCheck(
        measured=torch.cat([check.measured for check in checks]),
        claimed=torch.cat([check.claimed for check in checks]),
        expected=checks[0].expected,
    )


def check_places(
    vlm: VLM,
    recording: Recording,
    target: Target,
    neurons: Sequence[tuple[int, int]],
    claimed: Float[Tensor, "blocks width"],
    against: str | None = None,
    before: Prefix | None = None,
) -> NeuronCheck:
    """Take neurons away, one by one, and follow the change to the logit on a forward.

    The model runs again over the prompt and the caption up to the step. A neuron's FFN is computed anew from its own
    input with this activation at zero; every later write is held at what it was with all activations in place, and so
    are the norms' statistics. What is left of the change before the final norm is read along the direction.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        target: the step and the token.
        neurons: block and column of each; all are run at once, each in a row of its own.
        claimed: the scores that are checked.
        against: as in ``mmneurons.finders.Contribution``.
        before: what lies before the step, where it was run already (``mmneurons.vlm.replay.prefix``).
    """
    streams = streams_without(vlm, recording, target.step, neurons, before)
    head = readout(vlm)
    full = streams[:1]
    rows, constants = directions(head, recording.logits[target.step][None], [target], against)
    pulled = head.pull_back(rows, full)[0]
    shift = 0.0 if head.shift is None else float((rows @ head.shift)[0])
    return NeuronCheck(
        measured=((full - streams[1:]) @ pulled).float(),
        claimed=torch.stack([claimed[place] for place in neurons]),
        expected=float((rows.double() * head.normalize(full).double()).sum()) + float(constants[0]) - shift,
    )


def _check_word(word: object) -> None:
    if not isinstance(word, WordFinding):
        raise OptionError(f"Pass one word of a finding, such as found['dog'], not a {type(word).__name__}.")


def _reference(finder: Finder) -> str | None:
    return finder.against if isinstance(finder, Contribution) else None
