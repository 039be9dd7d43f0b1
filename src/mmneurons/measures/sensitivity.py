"""Semantic sensitivity (Pan et al. 2024, with our definition): do the neurons say what the picture shows?

The words that the first k neurons promote, as one text each, against the picture's captions where the truth has any,
otherwise its objects, otherwise the model's own caption: BERTScore (F1) and MoverScore with a stated encoder;
CLIPScore, max(100 cos, 0) (Hessel et al., EMNLP 2021), against the picture where a CLIP is named. Over neurons the
mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mmneurons.measures.case import Case, Observation
from mmneurons.measures.similarity import bert_scores, mover_scores
from mmneurons.neurons import output_vectors
from mmneurons.options import check_increasing, check_whole
from mmneurons.promotion import PromotedBy, check_by, promoter
from mmneurons.vlm.text_encoder import Clip, TextEncoder

__all__ = ["SemanticSensitivity"]


@dataclass(frozen=True)
class SemanticSensitivity:
    """See the module.

    Attributes:
        encoder: that texts are compared with.
        clip: that texts and pictures are compared with.
        ks: of how many neurons.
        promotes: how many words of each neuron.
        by: how these are ranked, see ``mmneurons.promotion``.
        layer: of the encoder, for BERTScore; its last by default.
        finders: whose neurons are read; None: all.

    Raises:
        OptionError: an option has a value that it cannot have.
    """

    encoder: TextEncoder = field(repr=False)
    clip: Clip | None = field(default=None, repr=False)
    ks: tuple[int, ...] = (1, 10, 50)
    promotes: int = 10
    by: PromotedBy = "cosine"
    layer: int | None = None
    finders: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_increasing("ks", self.ks)
        check_whole("promotes", self.promotes)
        check_by(self.by)
        if self.layer is not None:
            check_whole("layer", self.layer, 0, self.encoder.layers)

    @property
    def quantities(self) -> Mapping[str, str]:
        """What it gives."""
        layer = self.encoder.layers if self.layer is None else self.layer
        quantities = {
            "BERTScore": f"F1 of the words that a neuron promotes with the reference, {self.encoder.name}, layer "
            f"{layer}, not rescaled; mean over the top k",
            "MoverScore": f"the same by unigram MoverScore, {self.encoder.name}, equal weights",
        }
        if self.clip is not None:
            quantities["CLIPScore"] = f"the same against the picture, {self.clip.name}, 0 to 100"
        return quantities

    def __call__(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Observation]]:
        """Measure the words of one picture."""
        if not cases:
            return
        reference = _reference(cases[0])
        most = max(self.ks)
        texts = [self._texts(case, most) for case in cases]
        distinct = list(dict.fromkeys(text for by in texts for own in by.values() for text in own))
        same = [reference] * len(distinct)
        scores = bert_scores(self.encoder, distinct, same, self.layer)
        known: dict[str, dict[str, float]] = {
            "BERTScore": {text: score.f1 for text, score in zip(distinct, scores, strict=True)},
            "MoverScore": dict(zip(distinct, mover_scores(self.encoder, distinct, same), strict=True)),
        }
        picture = cases[0].word.found.picture
        if self.clip is not None and picture is not None:
            cosines = self.clip.cosines(distinct, [picture] * len(distinct))
            known["CLIPScore"] = dict(zip(distinct, (100 * cosines).clamp_min(0).tolist(), strict=True))
        for quantity, values in known.items():
            for case, by in zip(cases, texts, strict=True):
                for finder, own in by.items():
                    for k in (k for k in self.ks if k <= len(own)):
                        # a neuron may promote nothing that the encoder reads as a word
                        known_values = [values[text] for text in own[:k] if not np.isnan(values[text])]
                        mean = float(np.mean(known_values)) if known_values else float("nan")
                        yield case, Observation(finder, quantity, k, mean)

    def _texts(self, case: Case, most: int) -> dict[str, list[str]]:
        """By finder, what each of the first neurons promotes, with the sign that it had."""
        asked = {
            name: list(zip(ranking.top(most), ranking.signs[:most], strict=True))
            for name, ranking in case.rankings.items()
            if self.finders is None or name in self.finders
        }
        distinct = list(dict.fromkeys(one for own in asked.values() for one in own))
        vectors = output_vectors(case.vlm, [place for place, _ in distinct])
        signs = torch.tensor([sign for _, sign in distinct], dtype=torch.float32)
        promoted = promoter(case.vlm, self.by).tokens(vectors * signs[:, None], self.promotes)
        known = {one: " ".join(tokens) for one, tokens in zip(distinct, promoted, strict=True)}
        return {name: [known[one] for one in own] for name, own in asked.items()}


def _reference(case: Case) -> str:
    truth = case.truth
    if truth is not None and truth.captions:
        return " ".join(truth.captions)
    if truth is not None and truth.objects:
        return " ".join(dict.fromkeys(truth.objects))
    return case.word.found.caption
