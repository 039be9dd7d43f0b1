"""From the residual stream to the logits: the final norm with its statistics frozen, and the head.

With the norm's statistics frozen at ``h`` the logit of token t is linear in the stream,

    logit_t / scale = u_t · norm(h) + b_t = ũ_t · h + (u_t · shift + b_t),

where ``ũ_t`` is the unembedding ``u_t`` pulled back through the frozen norm. A direction here is any weighted sum of
unembeddings, ``Σ_t w_t u_t``, together with the constant ``Σ_t w_t (u_t · shift + b_t)`` that belongs to it.

Everything is read from the weights as they are now and nothing is kept between calls, so an edit never meets a stale
number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmneurons.vlm.anatomy import Norm
from mmneurons.vlm.discovery import norm_of
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import gain_of, shift_of, statistic_of
from mmneurons.vlm.weights import fetched, own_weight

__all__ = ["Readout", "readout"]


@dataclass(frozen=True)
class Transform:
    """What BERT has before its head's norm: a dense layer and an activation function.

    It is not linear. The function is held at its ratio to its input, element by element, at the position: an
    approximation of what a change of the stream would do, under which shares still add up to the logit.

    Attributes:
        weight: of the dense layer.
        bias: of the dense layer.
        function: the activation function.
    """

    weight: Float[Tensor, "hidden hidden"]
    bias: Float[Tensor, "hidden"]
    function: Callable[[Tensor], Tensor]

    def apply(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        """What it makes of a stream."""
        return self.function(stream @ self.weight.T + self.bias)

    def pull_back(
        self, directions: Float[Tensor, "positions hidden"], stream: Float[Tensor, "positions hidden"]
    ) -> Float[Tensor, "positions hidden"]:
        """Carry directions back through it, frozen at a stream."""
        return (directions * self._ratio(stream)) @ self.weight

    def offset(
        self, directions: Float[Tensor, "positions hidden"], stream: Float[Tensor, "positions hidden"]
    ) -> Float[Tensor, "positions"]:
        """The share of the dense layer's bias."""
        return (directions * self._ratio(stream)) @ self.bias

    def _ratio(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        given = stream @ self.weight.T + self.bias
        safe = given.where(given != 0, torch.full_like(given, torch.finfo(torch.float32).tiny))
        return self.function(safe) / safe


@dataclass(frozen=True)
class Readout:
    """The final norm and the head of a model, as they are now. All results are float32 on the CPU.

    Attributes:
        unembedding: the head's rows, a view on the model's own.
        bias: the head's bias, if it has one.
        gain: what the final norm multiplies by, elementwise.
        shift: what the final norm adds, if anything.
        norm: the final norm; None where the head reads the stream as it is.
        scale: the constant that the head multiplies logits by.
        softcap: the bound of the head's soft-cap, if it has one.
        ordinary: which tokens are ordinary text (not special, not image, not padding rows).
        transform: what comes before the norm, if anything.
    """

    unembedding: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, "vocabulary"] | None
    gain: Float[Tensor, "hidden"]
    shift: Float[Tensor, "hidden"] | None
    norm: Norm | None
    scale: float
    softcap: float | None
    ordinary: Bool[Tensor, "vocabulary"]
    transform: Transform | None = None

    def statistic(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions"]:
        """What the norm multiplies each position by: 1 / rms(h), 1 / standard deviation for a LayerNorm, or 1."""
        return torch.ones(len(stream), dtype=torch.double) if self.norm is None else statistic_of(self.norm, stream)

    def center(self, vectors: Tensor) -> Tensor:
        """The vectors without their mean, where the norm takes it away; otherwise the vectors."""
        centered = self.norm is not None and self.norm.kind == "layer"
        return vectors - vectors.mean(-1, keepdim=True) if centered else vectors

    def normalize(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        """The final norm, computed in float64 and rounded to float32."""
        given = self._last(stream)
        normed = self.center(given) * self.statistic(given)[:, None] * self.gain.double()
        return (normed if self.shift is None else normed + self.shift.double()).float()

    def pull_back(
        self, directions: Float[Tensor, "positions hidden"], stream: Float[Tensor, "positions hidden"]
    ) -> Float[Tensor, "positions hidden"]:
        """Carry directions back through the final norm, frozen at a stream, one for each position. In float64."""
        pulled = self.center(directions.double() * self.gain.double()) * self.statistic(self._last(stream))[:, None]
        return pulled if self.transform is None else self.transform.pull_back(pulled, stream.double())

    def offset(
        self, directions: Float[Tensor, "positions hidden"], stream: Float[Tensor, "positions hidden"]
    ) -> Float[Tensor, "positions"]:
        """What of ``u · norm(h)`` no write has a share in beyond ``constant``: that of a transform's bias."""
        if self.transform is None:
            return torch.zeros(len(directions), dtype=torch.double)
        pulled = self.center(directions.double() * self.gain.double()) * self.statistic(self._last(stream))[:, None]
        return self.transform.offset(pulled, stream.double())

    def _last(self, stream: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        """What the norm is given."""
        return stream.double() if self.transform is None else self.transform.apply(stream.double())

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
    norm = vlm.anatomy.norm
    head = vlm.model.get_submodule(vlm.anatomy.head.module)
    with fetched(head):
        bias = getattr(head, "bias", None)
        bias = None if bias is None else bias.detach().clone()
    unembedding = own_weight(head)
    if isinstance(more := getattr(head, "additional_fc", None), nn.Module):
        # Idefics keeps the rows of the tokens that were added to its vocabulary apart
        unembedding = torch.cat([unembedding, more.get_parameter("weight").detach()])
    transform = None
    if vlm.anatomy.head.transform is not None:
        before = vlm.model.get_submodule(vlm.anatomy.head.transform)
        dense = before.get_submodule("dense")
        weight, shift = (dense.get_parameter(name).detach().double().cpu() for name in ("weight", "bias"))
        transform = Transform(weight, shift, before.get_submodule("transform_act_fn"))
        norm = norm_of(before.get_submodule("LayerNorm"), f"{vlm.anatomy.head.transform}.LayerNorm")
    if vlm.anatomy.head.bias is not None:
        more = vlm.model.get_buffer(vlm.anatomy.head.bias).detach().flatten()
        bias = more if bias is None else bias + more
    return Readout(
        unembedding=unembedding,
        bias=None if bias is None else bias.detach(),
        gain=torch.ones(unembedding.shape[1]) if norm is None else gain_of(vlm.model, norm),
        shift=None if norm is None else shift_of(vlm.model, norm),
        norm=norm,
        scale=vlm.anatomy.head.scale,
        softcap=vlm.anatomy.head.softcap,
        ordinary=_ordinary(vlm, unembedding.shape[0]),
        transform=transform,
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
