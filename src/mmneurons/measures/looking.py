"""Where the neurons look, against where the thing is: the pointing game and the overlap of masks.

A word counts where it names an object that the picture truly shows. The map of a neuron is its activation at the image
tokens (see ``WordFinding.look``); of several, the mean of their maps. *Pointing*: its largest value lies in a box of
the object (Zhang et al. 2016). *Mask*: intersection over union of what lies above the map's 95th percentile, the
paper's mask, with the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mmneurons.errors import AnatomyError, OptionError
from mmneurons.heatmaps import Heatmap, mask_iou, pointing_hit
from mmneurons.measures.case import Case, Observation, Ranking
from mmneurons.options import check_increasing
from mmneurons.vlm.geometry import placed
from mmneurons.vlm.recording import image_activations

__all__ = ["Looking"]


@dataclass(frozen=True)
class Looking:
    """See the module.

    Attributes:
        names: which objects of a picture a word names; the names that equal it by default.
        ks: over how many neurons a map is taken; 1 is the first neuron's own.

    Raises:
        OptionError: ``ks`` are no growing whole numbers.
    """

    names: Callable[[str], frozenset[str]] = field(default=lambda word: frozenset({word}), repr=False)
    ks: tuple[int, ...] = (1, 10, 50)

    def __post_init__(self) -> None:
        check_increasing("ks", self.ks)

    @property
    def quantities(self) -> Mapping[str, str]:
        """What it gives."""
        return {
            "pointing": "share of maps whose largest value lies in the object's box",
            "mask IoU": "intersection over union of the map's mask (95th percentile) with the object",
        }

    def __call__(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Observation]]:
        """Measure the words that name an object of the truth; none where image tokens have no places."""
        for case in cases:
            yield from ((case, observation) for observation in self._measure(case))

    def _measure(self, case: Case) -> Iterator[Observation]:
        truth = case.truth
        picture = case.word.found.picture
        if truth is None or picture is None or not truth.boxes or not len(case.recording.image_positions):
            return
        named = self.names(case.word.word)
        things = [index for index, name in enumerate(truth.objects) if name in named]
        if not things:
            return
        try:
            geometry = placed(case.vlm, picture.size, len(case.recording.image_positions))
        except (AnatomyError, OptionError):
            return
        boxes = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in (truth.boxes[i] for i in things)]
        mask = None if truth.masks is None else np.any([truth.masks[index] for index in things], axis=0)
        for finder, ranking in case.rankings.items():
            maps = _maps(case, ranking, self.ks)
            for k, values in maps.items():
                look = Heatmap(values=values, geometry=geometry, title=case.word.word, source="recording")
                yield Observation(finder, "pointing", k, float(pointing_hit(look, boxes)))
                if mask is not None:
                    yield Observation(finder, "mask IoU", k, float(mask_iou(look.mask(), mask)))


def _maps(case: Case, ranking: Ranking, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """The mean map of the first k neurons, for every k."""
    most = min(max(ks), len(ranking.places))
    places = ranking.top(most)
    signs = torch.tensor(ranking.signs[:most], dtype=torch.float32)
    rows = image_activations(case.vlm, case.recording, places) * signs[:, None]
    return {k: rows[:k].mean(0).numpy().astype(np.float32) for k in ks if k <= most}
