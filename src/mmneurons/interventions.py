"""Changing neurons while the model runs, without a trace afterwards.

``zeroed``, ``held_at``, ``scaled`` and ``noisy`` change whatever runs inside their block: a caption, a finding, a
forward of one's own. Blocks may be nested: an inner one changes what the outer ones left. What is recorded inside are
the activations as they were changed. The weights are never touched, so leaving a block, in whatever way, leaves nothing
behind.

``logits_without`` asks what the model would have made of one word without some neurons, all else as it was said:
teacher-forced, many sets of neurons at once, at the cost of a few steps of generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finding import WordFinding
from mmneurons.neurons import Neurons, places_of
from mmneurons.options import check_seed
from mmneurons.vlm.changes import ALL, EMITTING, Change, changed, zeros
from mmneurons.vlm.hooks import listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import logits_without as replay_without
from mmneurons.vlm.sites import columns

__all__ = [
    "Positions",
    "held_at",
    "held_at_changes",
    "intervened",
    "logits_without",
    "mean_activations",
    "noise_changes",
    "noisy",
    "scale_changes",
    "scaled",
    "zeroed",
]

Positions = Literal["all", "emitting"]
"""``"all"``, or ``"emitting"``: the positions that emit tokens. Those are the last one of every forward, and in a
recording of a given caption all that emit its tokens."""

Values = Float[Tensor, "neurons"] | Sequence[float] | float
"""One number for each neuron, or one for all."""


@contextmanager
def intervened(vlm: VLM, changes: Sequence[Change], positions: Positions = "all") -> Iterator[None]:
    """Hold neurons changed while the block runs; what the other functions here do.

    Args:
        vlm: the model.
        changes: which neurons, and how.
        positions: where.

    Raises:
        OptionError: ``positions`` is something else.
        AnatomyError: there is no such neuron.
    """
    if positions not in (ALL, EMITTING):
        raise OptionError(f"positions={positions!r} is not possible. Choose 'all' or 'emitting'.")
    batch = [1]

    def count(x: Tensor) -> None:
        batch[0] = x.shape[0]

    with (
        listening(vlm.model, {vlm.anatomy.blocks[0].module: count}),
        changed(vlm, changes, positions, lambda: batch[0]),
    ):
        yield


@contextmanager
def zeroed(vlm: VLM, neurons: Neurons, positions: Positions = "all") -> Iterator[None]:
    """Hold the activations of some neurons at zero while the block runs.

    Args:
        vlm: the model.
        neurons: block and column of each, their names, or ``word.top(20)``.
        positions: where, see ``Positions``.

    Raises:
        OptionError: ``positions`` is something else.
        AnatomyError: there is no such neuron.
    """
    with intervened(vlm, zeros(places_of(vlm, neurons)), positions):
        yield


@contextmanager
def held_at(vlm: VLM, neurons: Neurons, values: Values, positions: Positions = "all") -> Iterator[None]:
    """Hold the activations of some neurons at values of their own, such as ``mean_activations``.

    Args:
        vlm: the model.
        neurons: block and column of each, their names, or ``word.top(20)``.
        values: one for each, or a number for all. A unit of an expert is held at its value whether or not its expert
            was chosen, times the factor that follows the write site.
        positions: where, see ``Positions``.

    Raises:
        OptionError: ``positions`` is something else, or there is not one number for each neuron.
        AnatomyError: there is no such neuron.
    """
    with intervened(vlm, held_at_changes(vlm, neurons, values), positions):
        yield


@contextmanager
def scaled(vlm: VLM, neurons: Neurons, factor: float, positions: Positions = "all") -> Iterator[None]:
    """Multiply the activations of some neurons while the block runs.

    Args:
        vlm: the model.
        neurons: block and column of each, their names, or ``word.top(20)``.
        factor: 0 takes them away, 1 leaves them as they are.
        positions: where, see ``Positions``.

    Raises:
        OptionError: ``positions`` is something else, or ``factor`` is no finite number.
        AnatomyError: there is no such neuron.
    """
    with intervened(vlm, scale_changes(vlm, neurons, factor), positions):
        yield


@contextmanager
def noisy(
    vlm: VLM,
    neurons: Neurons,
    sigma: float = 1.0,
    on: Literal["vector", "activation"] = "vector",
    seed: int = 0,
    positions: Positions = "all",
) -> Iterator[None]:
    """Add Gaussian noise to some neurons while the block runs, the same at every position.

    Args:
        vlm: the model.
        neurons: block and column of each, their names, or ``word.top(20)``.
        sigma: standard deviation. On output vectors over the root mean square of the vector's elements; on activations
            over the activation, which is multiplied by 1 + σ ε with one ε for each neuron. The value that Pan et al.
            (2024) used was never published.
        on: ``"vector"`` (the paper's: the columns of write sites) or ``"activation"``.
        seed: of the noise.
        positions: where, see ``Positions``.

    Raises:
        OptionError: an option has a value that it cannot have.
        AnatomyError: there is no such neuron.
    """
    with intervened(vlm, noise_changes(vlm, neurons, sigma, on, seed), positions):
        yield


def held_at_changes(vlm: VLM, neurons: Neurons, values: Values) -> list[Change]:
    """The changes of ``held_at``. Errors as there."""
    places = places_of(vlm, neurons)
    held = _numbers(values, len(places))
    if len(held) != len(places) or len(set(places)) != len(places):
        raise OptionError(f"There are {len(set(places))} neurons and {len(held)} values: pass one for each.")
    return _changes(places, torch.zeros(len(places)), held)


def scale_changes(vlm: VLM, neurons: Neurons, factor: float) -> list[Change]:
    """The changes of ``scaled``. Errors as there."""
    _check_number("factor", factor)
    places = list(dict.fromkeys(places_of(vlm, neurons)))
    return _changes(places, torch.full((len(places),), float(factor)), torch.zeros(len(places)))


def noise_changes(
    vlm: VLM, neurons: Neurons, sigma: float = 1.0, on: Literal["vector", "activation"] = "vector", seed: int = 0
) -> list[Change]:
    """The changes of ``noisy``. Errors as there."""
    if on not in ("vector", "activation"):
        raise OptionError(f"on={on!r} is not possible. Choose 'vector' or 'activation'.")
    _check_number("sigma", sigma)
    check_seed(seed)
    places = list(dict.fromkeys(places_of(vlm, neurons)))
    generator = torch.Generator().manual_seed(seed)
    count = len(places)
    if on == "activation":
        factor = 1 + sigma * torch.randn(count, generator=generator)
        return _changes(places, factor, torch.zeros(count))
    draw = torch.randn(count, vlm.anatomy.hidden, generator=generator)
    vectors = _columns(vlm, places)
    noise = sigma * draw * vectors.square().mean(-1, keepdim=True).sqrt()
    return _changes(places, torch.ones(count), torch.zeros(count), noise)


def mean_activations(vlm: VLM, recordings: Sequence[Recording], neurons: Neurons) -> Float[Tensor, "neurons"]:
    """The mean activation of some neurons over the emitting positions of a reference set, for ``held_at``.

    Raises:
        OptionError: there are no recordings.
        AnatomyError: there is no such neuron.
    """
    places = places_of(vlm, neurons)
    if not recordings:
        raise OptionError("A mean needs recordings to be taken over: pass those of a reference set.")
    blocks, own = [block for block, _ in places], [column for _, column in places]
    steps = torch.cat([recording.activations[:, blocks, own] for recording in recordings])
    return steps.double().mean(0).float()


def logits_without(
    word: WordFinding, sets: Sequence[Neurons], step: int | None = None
) -> Float[Tensor, "rows vocabulary"]:
    """The logits that a word came from, without some neurons at the position that emitted it; later blocks react.

    Teacher-forced: what was said before the word stays as it was said.

    Args:
        word: of a finding.
        sets: sets of neurons, named as in ``zeroed``; every set is a variant of its own, all are run at once.
        step: the index into ``recording.token_ids`` of another token than the word's first.

    Returns:
        Row 0 with every neuron in place, then a row for each set. Float32, as the model gives them: before any logits
        processor.

    Raises:
        AnatomyError: there is no such neuron.
        OptionError: there is no such step.
    """
    vlm, recording = word.found.vlm, word.found.recording
    step = word.steps[0] if step is None else step
    if not 0 <= step < len(recording):
        raise OptionError(f"There is no step {step}: steps are 0 to {len(recording) - 1}.")
    return replay_without(vlm, recording, step, [places_of(vlm, neurons) for neurons in sets])


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise OptionError(f"{name}={value!r} is not possible: it has to be a finite number.")


def _numbers(values: Values, count: int) -> Float[Tensor, "neurons"]:
    """A number for each neuron, or one for all of them, as a tensor."""
    if isinstance(values, int | float):
        _check_number("values", values)
        return torch.full((count,), float(values))
    try:
        held = torch.as_tensor(values).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"values={values!r} is not possible: pass a number, or one for each neuron.") from error
    if held.ndim != 1 or not held.isfinite().all():
        raise OptionError(f"values={values!r} is not possible: pass finite numbers, one for each neuron.")
    return held


def _changes(
    neurons: Sequence[tuple[int, int]],
    factor: Float[Tensor, "neurons"],
    shift: Float[Tensor, "neurons"],
    noise: Float[Tensor, "neurons hidden"] | None = None,
) -> list[Change]:
    """One change for every block."""
    changes = []
    for block in sorted({block for block, _ in neurons}):
        own = [index for index, place in enumerate(neurons) if place[0] == block]
        changes.append(
            Change(
                block=block,
                columns=torch.tensor([neurons[index][1] for index in own]),
                factor=factor[own],
                shift=shift[own].float(),
                noise=None if noise is None else noise[own],
            )
        )
    return changes


def _columns(vlm: VLM, neurons: Sequence[tuple[int, int]]) -> Float[Tensor, "neurons hidden"]:
    """The columns of neurons as their write sites hold them."""
    rows = torch.zeros(len(neurons), vlm.anatomy.hidden)
    for index, (block, column) in enumerate(neurons):
        site = vlm.anatomy.site(block, column)
        rows[index] = columns(vlm.model, site, [column - site.start])[0]
    return rows
