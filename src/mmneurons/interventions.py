"""Taking neurons away while the model runs, without a trace afterwards.

``zeroed`` does it to whatever runs inside its block: a caption, a finding, a forward of one's own. ``logits_without``
asks what the model would have made of one word without some neurons, all else as it was said: teacher-forced, many sets
of neurons at once, at the cost of a few steps of generation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finding import WordFinding
from mmneurons.vlm.hooks import hooked, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.replay import drop
from mmneurons.vlm.replay import logits_without as replay_without

__all__ = ["logits_without", "zeroed"]


@contextmanager
def zeroed(
    vlm: VLM, neurons: Sequence[tuple[int, int]], positions: Literal["all", "emitting"] = "all"
) -> Iterator[None]:
    """Hold the activations of some neurons at zero while the block runs; the weights are never touched.

    Args:
        vlm: the model.
        neurons: block and column of each.
        positions: ``"all"``, or ``"emitting"``: the last position of every forward. While the model generates with its
            cache these are the positions that emit its tokens; in a forward over a whole text it is the last one only.

    Raises:
        OptionError: ``positions`` is something else.
        AnatomyError: there is no such neuron.
    """
    if positions not in ("all", "emitting"):
        raise OptionError(f"positions={positions!r} is not possible. Choose 'all' or 'emitting'.")
    _check(vlm, neurons)
    where = slice(None) if positions == "all" else slice(-1, None)

    batch = [1]

    def count(x: Tensor) -> None:
        batch[0] = x.shape[0]

    before, after = drop(vlm, [(-1, block, column) for block, column in neurons], lambda: batch[0], where)
    with listening(vlm.model, {vlm.anatomy.blocks[0].module: count}), hooked(vlm.model, before, after):
        yield


def logits_without(
    word: WordFinding, sets: Sequence[Sequence[tuple[int, int]]], step: int | None = None
) -> Float[Tensor, "rows vocabulary"]:
    """The logits that a word came from, without some neurons at the position that emitted it; later blocks react.

    Teacher-forced: what was said before the word stays as it was said.

    Args:
        word: of a finding.
        sets: sets of neurons, block and column of each neuron; every set is a variant of its own, all are run at once.
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
    for neurons in sets:
        _check(vlm, neurons)
    return replay_without(vlm, recording, step, sets)


def _check(vlm: VLM, neurons: Sequence[tuple[int, int]]) -> None:
    for place in neurons:
        vlm.anatomy.name(*place)
