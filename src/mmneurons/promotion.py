"""The words that neurons promote, read from their output vectors.

A vector v in the residual stream moves the logit of token j by u_j · (γ⊙v) up to the norm's statistic. What moves all
tokens alike is no meaning, so unembeddings are centred on the mean ū of ordinary tokens: tokens are ranked by the
cosine of γ⊙v and u_j − ū, or by the product u_j · (γ⊙v). An approximation: what later blocks do with v is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import Readout, readout

__all__ = ["PromotedBy", "Promoter", "check_by", "promoted_ids", "promoted_tokens", "promoter"]

PromotedBy = Literal["cosine", "product"]

_CHUNK = 16384


@dataclass(frozen=True, eq=False)
class Promoter:
    """One reading of a head: what is the same for all vectors that are looked up in it.

    It is of the weights as they were when it was made. Whoever keeps one knows that they have not changed.

    Attributes:
        vlm: the model.
        head: its norm and head.
        mean: ū, the mean unembedding of ordinary tokens.
        lengths: of every u_j − ū; ones where tokens are ranked by the product.
    """

    vlm: VLM
    head: Readout
    mean: Float[Tensor, "hidden"]
    lengths: Float[Tensor, "vocabulary"]

    def ids(self, vectors: Float[Tensor, "vectors hidden"], k: int = 10) -> list[list[int]]:
        """The ids of the ordinary tokens that each vector makes likelier, most first."""
        read = self.head.center(vectors) * self.head.gain
        best_values = torch.full((len(vectors), 0), 0.0)
        best_ids = torch.zeros(len(vectors), 0, dtype=torch.long)
        # in chunks, so that nothing of the size neurons × vocabulary is built
        for start in range(0, len(self.lengths), _CHUNK):
            part = slice(start, start + _CHUNK)
            values = read @ self.head.unembedding[part].float().cpu().T
            values -= (read @ self.mean)[:, None]
            values /= self.lengths[part]
            values[:, ~self.head.ordinary[part]] = -torch.inf
            own_values, own_ids = values.topk(min(k, values.shape[1]))
            best_values, best_ids = torch.cat([best_values, own_values], 1), torch.cat([best_ids, own_ids + start], 1)
            best_values, places = best_values.topk(min(k, best_values.shape[1]))
            best_ids = best_ids.gather(1, places)
        there = min(k, int(self.head.ordinary.sum()))
        return best_ids[:, :there].tolist()

    def tokens(self, vectors: Float[Tensor, "vectors hidden"], k: int = 10) -> list[tuple[str, ...]]:
        """As ``ids``, spelt out; as ``#123`` where the model was wrapped without a processor."""
        tokenizer = getattr(self.vlm.processor, "tokenizer", None)

        def spell(token: int) -> str:
            if tokenizer is None:
                return f"#{token}"
            return tokenizer.decode([token], clean_up_tokenization_spaces=False).strip()

        return [tuple(spell(token) for token in tokens) for tokens in self.ids(vectors, k)]


def check_by(by: str) -> None:
    """Refuse a ranking that there is not.

    Raises:
        OptionError: ``by`` is neither ``"cosine"`` nor ``"product"``.
    """
    if by not in ("cosine", "product"):
        raise OptionError(f"by={by!r} is not possible. Choose 'cosine' or 'product'.")


def promoter(vlm: VLM, by: PromotedBy = "cosine") -> Promoter:
    """Read the head as it is now.

    Raises:
        OptionError: ``by`` is something else.
    """
    check_by(by)
    head = readout(vlm)
    mean = head.mixture((head.ordinary.float() / head.ordinary.sum())[None])[0][0] / head.scale
    lengths = torch.ones(len(head.ordinary))
    if by == "cosine":
        for start in range(0, len(lengths), _CHUNK):
            part = slice(start, start + _CHUNK)
            lengths[part] = (head.unembedding[part].float().cpu() - mean).norm(dim=-1)
        # a row that is the mean points nowhere; its product with anything is 0, and stays 0
        lengths.clamp_(min=torch.finfo(torch.float32).tiny)
    return Promoter(vlm, head, mean, lengths)


def promoted_ids(
    vlm: VLM, vectors: Float[Tensor, "vectors hidden"], k: int = 10, by: PromotedBy = "cosine"
) -> list[list[int]]:
    """The ids of the ordinary tokens that each vector makes likelier, most first.

    Raises:
        OptionError: ``by`` is neither ``"cosine"`` nor ``"product"``.
    """
    return promoter(vlm, by).ids(vectors, k)


def promoted_tokens(
    vlm: VLM, vectors: Float[Tensor, "vectors hidden"], k: int = 10, by: PromotedBy = "cosine"
) -> list[tuple[str, ...]]:
    """As ``promoted_ids``, spelt out; ids as ``#123`` where the model was wrapped without a processor."""
    return promoter(vlm, by).tokens(vectors, k)
