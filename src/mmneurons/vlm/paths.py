"""Carrying a direction from the final norm back to where things are written.

With the statistics of the norms on the way and the gates held at what they were at a position, the stream before the
final norm is linear in every write w: J_w w, where J_w is a product of constants, gates and norms with frozen
statistics. So a direction d that the stream is read along has the share J_wᵀ d · w of the write, and J_wᵀ d is what is
carried back here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmneurons.vlm.anatomy import Anatomy, Norm, Path
from mmneurons.vlm.weights import fetched, own_weight

__all__ = ["Carried", "carry_back", "gain_of", "shift_of", "statistic_of", "write_paths"]


@dataclass(frozen=True, eq=False)
class Carried:
    """Directions, carried back through the norms that the whole stream goes through.

    Attributes:
        anatomy: of the model.
        behind: the directions where the stream has come through so many carriers: the last one is the final norm's.
        gains: what each norm multiplies by, elementwise, by its module's name.
        shifts: what each norm adds, where it adds something.
        statistics: of every norm of ``anatomy.norms``.
        factors: the value of every gate of ``anatomy.gates``.
    """

    anatomy: Anatomy
    behind: tuple[Float[Tensor, "rows hidden"], ...]
    gains: dict[str, Float[Tensor, "hidden"]]
    shifts: dict[str, Float[Tensor, "hidden"]]
    statistics: Float[Tensor, "rows norms"]
    factors: Float[Tensor, "rows gates"]

    def at(self, path: Path) -> Float[Tensor, "rows hidden"]:
        """The directions at the beginning of a path: what a write is multiplied with to give its share."""
        directions = self.behind[path.carriers]
        for norm in reversed(path.norms):
            directions = self._through(norm, directions)
        if path.gate is not None:
            directions = directions * self.factors[:, self.anatomy.gates.index(path.gate), None].to(directions)
        return directions if path.gain == 1 else directions * path.gain

    def forward(self, path: Path, written: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        """What is written at the beginning of a path, as it arrives at the final norm; without what norms add."""
        if path.gate is not None:
            written = written * self.factors[:, self.anatomy.gates.index(path.gate), None].to(written)
        written = written * path.gain
        for norm in (*path.norms, *self.anatomy.carriers[path.carriers :]):
            index = [other.module for other in self.anatomy.norms].index(norm.module)
            if norm.kind == "layer":
                written = written - written.mean(-1, keepdim=True)
            written = written * self.statistics[:, index, None].to(written) * self.gains[norm.module].to(written)
        return written

    def added(self) -> Float[Tensor, "rows hidden"]:
        """What the norms on the way add, as it arrives at the final norm."""
        total = torch.zeros_like(self.behind[-1])
        for index, norm in enumerate(self.anatomy.carriers):
            if norm.module in self.shifts:
                shift = self.shifts[norm.module].to(total).expand_as(total)
                total = total + self.forward(Path(carriers=index + 1, gain=norm.gain), shift)
        for norm, rest in _endings(self.anatomy).items():
            if norm.module in self.shifts:
                shift = self.shifts[norm.module].to(total).expand_as(total)
                total = total + self.forward(replace(rest, gain=norm.gain), shift)
        return total

    def constants(self) -> Float[Tensor, "rows"]:
        """The share of what the norms on the way add."""
        total = torch.zeros_like(self.behind[-1][:, 0])
        for index, norm in enumerate(self.anatomy.carriers):
            if norm.module in self.shifts:
                total = total + self.behind[index + 1] @ self.shifts[norm.module].to(total) * norm.gain
        for norm, rest in _endings(self.anatomy).items():
            if norm.module in self.shifts:
                here = self.at(replace(rest, gain=norm.gain))
                total = total + here @ self.shifts[norm.module].to(total)
        return total

    def _through(self, norm: Norm, directions: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        index = [other.module for other in self.anatomy.norms].index(norm.module)
        directions = directions * self.gains[norm.module].to(directions)
        if norm.kind == "layer":
            directions = directions - directions.mean(-1, keepdim=True)
        return directions * self.statistics[:, index, None].to(directions)


def carry_back(
    model: nn.Module,
    anatomy: Anatomy,
    directions: Float[Tensor, "rows hidden"],
    statistics: Float[Tensor, "rows norms"],
    factors: Float[Tensor, "rows gates"],
) -> Carried:
    """Carry directions back through all carriers, with the norms' weights as they are now.

    Args:
        model: the model.
        anatomy: its anatomy.
        directions: what the stream before the final norm is read along, a row for each position.
        statistics: of every norm of ``anatomy.norms`` at each position, see ``statistic_of``.
        factors: the value of every gate of ``anatomy.gates`` at each position.
    """
    gains = {norm.module: gain_of(model, norm) for norm in anatomy.norms}
    shifts = {norm.module: shift for norm in anatomy.norms if (shift := shift_of(model, norm)) is not None}
    carried = Carried(anatomy, (directions,), gains, shifts, statistics, factors)
    behind = [directions]
    for norm in reversed(anatomy.carriers):
        behind.insert(0, carried._through(norm, behind[0]))
    return replace(carried, behind=tuple(behind))


def statistic_of(norm: Norm, x: Float[Tensor, "*positions hidden"]) -> Float[Tensor, "*positions"]:
    """What a norm multiplies each position by: 1 / rms, or 1 / standard deviation for a LayerNorm. In float64."""
    x = x.double()
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return (x.square().mean(-1) + norm.eps).rsqrt()


def gain_of(model: nn.Module, norm: Norm) -> Float[Tensor, "hidden"]:
    """What a norm multiplies by, elementwise. Float32 on the CPU."""
    return own_weight(model.get_submodule(norm.module)).float().cpu() + norm.offset


def shift_of(model: nn.Module, norm: Norm) -> Float[Tensor, "hidden"] | None:
    """What a norm adds, if anything. Float32 on the CPU."""
    module = model.get_submodule(norm.module)
    with fetched(module):
        shift = getattr(module, "bias", None)
        return None if shift is None else shift.detach().float().cpu()


def write_paths(anatomy: Anatomy) -> list[Path]:
    """The paths of all writes that are no FFN's, in the order in which recordings hold them."""
    return [write.path for block in anatomy.blocks for write in block.writes]


def _endings(anatomy: Anatomy) -> dict[Norm, Path]:
    """For every norm of a single write the rest of the path behind it."""
    endings: dict[Norm, Path] = {}
    for path in anatomy.paths:
        for index, norm in enumerate(path.norms):
            endings.setdefault(norm, replace(path, norms=path.norms[index + 1 :]))
    return endings
