"""From the residual stream to the logits: the final norm with its statistics frozen, and the head.

With the norm's statistics frozen at ``h`` the logit of token t is linear in the stream,

    logit_t / scale = u_t · norm(h) + b_t = ũ_t · h + (u_t · shift + b_t),

where ``ũ_t`` is the unembedding ``u_t`` pulled back through the frozen norm. A direction here is any weighted sum of
unembeddings, ``Σ_t w_t u_t``, together with the constant ``Σ_t w_t (u_t · shift + b_t)`` that belongs to it.

Everything is read from the weights as they are now and nothing is kept between calls, so an edit never meets a stale
number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmneurons.vlm.model import VLM

__all__ = ["Readout", "readout"]


@dataclass(frozen=True)
class Readout:
    """The final norm and the head of a model, as they are now. All results are float32 on the CPU.

    Attributes:
        unembedding: the head's rows, a view on the model's own.
        bias: the head's bias, if it has one.
        gain: what the final norm multiplies by, elementwise.
        shift: what the final norm adds, if anything.
        centered: the final norm takes the mean of the stream away first.
        eps: what is added under the norm's root.
        scale: the constant that the head multiplies logits by.
        softcap: the bound of the head's soft-cap, if it has one.
        ordinary: which tokens are ordinary text (not special, not image, not padding rows).
    """

    unembedding: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, "vocabulary"] | None
    gain: Float[Tensor, "hidden"]
    shift: Float[Tensor, "hidden"] | None
    centered: bool
    eps: float
    scale: float
    softcap: float | None
    ordinary: Bool[Tensor, "vocabulary"]

    def statistic(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions"]:
        """What the norm multiplies each position by: 1 / rms(h), or 1 / standard deviation for a LayerNorm."""
        stream = self.center(stream.double())
        return (stream.square().mean(-1) + self.eps).rsqrt()

    def center(self, vectors: Tensor) -> Tensor:
        """The vectors without their mean, where the norm takes it away; otherwise the vectors."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centered else vectors

    def normalize(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        """The final norm, computed in float64 and rounded to float32."""
        normed = self.center(stream.double()) * self.statistic(stream)[:, None] * self.gain.double()
        return (normed if self.shift is None else normed + self.shift.double()).float()

    def pull_back(self, directions: Float[Tensor, "directions hidden"]) -> Float[Tensor, "directions hidden"]:
        """Carry directions back through the final norm; a position's statistic is still to be multiplied."""
        return self.center(directions * self.gain)

    def logits(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions vocabulary"]:
        """The logits before a soft-cap, with the head's scale."""
        normed = self.normalize(stream).to(self.unembedding.dtype).to(self.unembedding.device)
        logits = torch.nn.functional.linear(normed, self.unembedding, self.bias)
        return logits.float().cpu() * self.scale

    def rows(self, tokens: Int[Tensor, "tokens"]) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens"]]:
        """The unembeddings of some tokens and the constants that belong to them, with the head's scale."""
        rows = self.unembedding[tokens.to(self.unembedding.device)].float().cpu()
        bias = torch.zeros(len(tokens)) if self.bias is None else self.bias.float().cpu()[tokens]
        return rows * self.scale, self.constant(rows, bias)

    def mixture(
        self, weights: Float[Tensor, "mixtures vocabulary"]
    ) -> tuple[Float[Tensor, "mixtures hidden"], Float[Tensor, "mixtures"]]:
        """Weighted sums of all unembeddings, and the constants that belong to them, with the head's scale."""
        unembedding = self.unembedding
        rows = torch.zeros(len(weights), unembedding.shape[1])
        # in slices, because a head in half precision would otherwise be copied to float32 whole
        slices = 1 if unembedding.dtype == torch.float32 else -(-unembedding.shape[0] // 16384)
        for ids in torch.arange(unembedding.shape[0]).chunk(slices):
            part = slice(int(ids[0]), int(ids[-1]) + 1)
            rows += (weights[:, part].to(unembedding.device) @ unembedding[part].float()).cpu()
        bias = torch.zeros(len(weights)) if self.bias is None else weights @ self.bias.float().cpu()
        return rows * self.scale, self.constant(rows, bias)

    def constant(self, rows: Float[Tensor, "tokens hidden"], bias: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
        """The part of ``u · norm(h) + b`` that no write has a share in, with the head's scale."""
        shift = 0.0 if self.shift is None else rows @ self.shift
        return (bias + shift) * self.scale


def readout(vlm: VLM) -> Readout:
    """Read the final norm and the head of a model, as they are now."""
    norm = vlm.model.get_submodule(vlm.anatomy.norm.module)
    head = vlm.model.get_submodule(vlm.anatomy.head.module)
    shift = getattr(norm, "bias", None)
    bias = getattr(head, "bias", None)
    unembedding = head.get_parameter("weight").detach()
    return Readout(
        unembedding=unembedding,
        bias=None if bias is None else bias.detach(),
        gain=norm.get_parameter("weight").detach().float().cpu() + vlm.anatomy.norm.offset,
        shift=None if shift is None else shift.detach().float().cpu(),
        centered=vlm.anatomy.norm.kind == "layer",
        eps=vlm.anatomy.norm.eps,
        scale=vlm.anatomy.head.scale,
        softcap=vlm.anatomy.head.softcap,
        ordinary=_ordinary(vlm, unembedding.shape[0]),
    )


def _ordinary(vlm: VLM, rows: int) -> Bool[Tensor, "vocabulary"]:
    ordinary = torch.ones(rows, dtype=torch.bool)
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    if tokenizer is not None:
        ordinary[len(tokenizer) :] = False
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        ordinary[[index for index in added.union(tokenizer.all_special_ids) if index < rows]] = False
    if vlm.image_token_id is not None and vlm.image_token_id < rows:
        ordinary[vlm.image_token_id] = False
    return ordinary
