"""Derivatives of what a model says with respect to the activations of its neurons.

The graph begins where the stream enters block 0 and ends at the logits. Weights are constants in it: while it is built
they ask for no gradient, and afterwards they are as they were, their gradients included.

``step_derivatives`` runs the emitting position alone, against the keys and values of what came before: nothing that
happens there reaches the logits by another way, so the derivatives are those of a full backward pass.
``caption_derivatives`` runs the prompt and the caption whole, for derivatives at other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.changes import EMITTING, Change, changed, emitting, heard_activations
from mmneurons.vlm.decoding import forced_inputs
from mmneurons.vlm.hooks import evaluating, hooked, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording, shuffled
from mmneurons.vlm.replay import Prefix, replay
from mmneurons.vlm.sites import project

__all__ = ["Derivatives", "Objective", "caption_derivatives", "constant_weights", "step_derivatives"]

Objective = Callable[[Float[Tensor, "rows vocabulary"]], Float[Tensor, "rows"]]
"""From logits to the number whose derivative is asked for, row by row."""


@dataclass(frozen=True, eq=False)
class Derivatives:
    """What neurons did at one position, in several rows, and how much more of it would change an objective.

    Attributes:
        activations: z of every neuron, changed as it was in the row; units that a narrower block does not have are 0.
        gradients: the derivative of the objective with respect to z, through all later blocks and the final norm.
        logits: of each row.
        before: what to pass as ``before`` for the same step.
    """

    activations: Float[Tensor, "rows blocks width"]
    gradients: Float[Tensor, "rows blocks width"]
    logits: Float[Tensor, "rows vocabulary"]
    before: Prefix


def step_derivatives(
    vlm: VLM,
    recording: Recording,
    step: int,
    objective: Objective,
    *,
    rows: int = 1,
    changes: Sequence[Change] = (),
    scales: Mapping[int, Float[Tensor, "rows"]] | None = None,
    before: Prefix | None = None,
    check: bool = True,
) -> Derivatives:
    """Run the emitting position of a step again and differentiate.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        step: of it.
        objective: what is differentiated.
        rows: how many variants are run.
        changes: of neurons at the emitting position, by row.
        scales: what all activations of a block are multiplied by at the emitting position, by block, one number for
            each row. Derivatives are with respect to the scaled activations, and only those of these blocks are given.
        before: what lies before the step or a later one, where it was run already.
        check: whether row 0 has nothing changed, so that its logits have to be those of the recording.

    Raises:
        OptionError: the model is quantised: derivatives through its kernels are not proved.
        RecordingError: row 0 is not what was recorded, or the model cannot be differentiated.
    """
    _refuse_quantised(vlm)
    tape = _Tape(vlm, rows, torch.tensor([-1]), scales)

    def listened() -> AbstractContextManager[object]:
        stack = ExitStack()
        stack.enter_context(changed(vlm, changes, EMITTING, lambda: rows))
        stack.enter_context(tape.listening())
        return stack

    with constant_weights(vlm.model):
        logits, before = replay(vlm, recording, step, rows, listened, before, check, gradient=True)
        gradients = tape.gradients(objective(logits).sum())
    return Derivatives(tape.activations()[:, :, 0], gradients[:, :, 0], logits.detach(), before)


def caption_derivatives(
    vlm: VLM,
    recording: Recording,
    steps: Sequence[int],
    objectives: Sequence[Objective],
    positions: Int[Tensor, "positions"],
) -> Iterator[tuple[Float[Tensor, "blocks positions width"], Float[Tensor, "blocks positions width"]]]:
    """Run the prompt and the caption whole and differentiate at some positions, objective by objective.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        steps: whose logits each objective is given, as a batch of one.
        objectives: what is differentiated.
        positions: among the decoder's.

    Yields:
        The activations and the derivatives with respect to them, for each objective.

    Raises:
        OptionError: the model is quantised.
        RecordingError: the model cannot be differentiated.
    """
    _refuse_quantised(vlm)
    said = recording.token_ids[: max(steps) + 1]
    inputs = forced_inputs(vlm, recording.inputs, said.tolist())
    tape = _Tape(vlm, 1, positions, None)
    with constant_weights(vlm.model), evaluating(vlm.model), emitting(len(said)):
        with torch.enable_grad(), shuffled(vlm, inputs, recording.shuffle), tape.listening():
            logits = vlm.model(**inputs, use_cache=False).logits[:, -len(said) :].float().cpu()
        activations = tape.activations()[0]
        for index, (step, objective) in enumerate(zip(steps, objectives, strict=True), 1):
            with torch.enable_grad():
                value = objective(logits[:, step]).sum()
            yield activations, tape.gradients(value, again=index < len(steps))[0]


@contextmanager
def constant_weights(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient while the block runs; afterwards every one does as it did."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


class _Tape:
    """What a graph is asked about, at some positions: what write sites were given, and what experts gave."""

    def __init__(
        self,
        vlm: VLM,
        rows: int,
        positions: Int[Tensor, "positions"],
        scales: Mapping[int, Float[Tensor, "rows"]] | None,
    ) -> None:
        self._vlm, self._rows, self._positions, self._scales = vlm, rows, positions, scales
        self._nodes: dict[str, Tensor] = {}
        self._experts: dict[str, Tensor] = {}
        self._sites = [
            (index, site)
            for index, block in enumerate(vlm.anatomy.blocks)
            for site in block.sites
            if scales is None or index in scales
        ]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Begin a graph at block 0 and keep its nodes at write sites while the block runs."""
        before = {site.module: self._dense(index, site) for index, site in self._sites if site.experts is None}
        after = {site.module: self._mixture(index, site) for index, site in self._sites if site.experts is not None}
        first = self._vlm.anatomy.blocks[0].module

        def enter(x: Tensor) -> Tensor:
            return x.detach().requires_grad_()

        with listening(self._vlm.model, {first: enter}), hooked(self._vlm.model, before, after):
            yield

    def _scaled(self, index: int, x: Tensor) -> Tensor:
        """What a module is given or gives, scaled at the positions that are asked about."""
        if self._scales is None:
            return x
        factor = self._scales[index].to(x)
        rows = x.reshape(self._rows, -1, x.shape[-1])
        where = torch.zeros(rows.shape[1], dtype=torch.bool, device=x.device)
        where[self._positions.to(x.device)] = True
        return torch.where(where[None, :, None], rows * factor[:, None, None], rows).view(x.shape)

    def _dense(self, index: int, site: WriteSite) -> Callable[..., object]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple:
            node = self._nodes[site.module] = self._scaled(index, args[0])
            return (node, *args[1:]), kwargs

        return hook

    def _mixture(self, index: int, site: WriteSite) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            assert site.experts is not None
            given = [one.detach() for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            # every expert of some families gives its own row for a token; they are added up, and scaled alike
            groups = site.experts.count if site.experts.layout == "sorted" else 1
            parts = output.view(groups, -1, output.shape[-1])
            node = torch.stack([self._scaled(index, one) for one in parts]).view(output.shape)
            self._nodes[site.module] = node
            with torch.no_grad():
                places = self._places(parts.shape[1]).to(given[0].device)
                z = heard_activations(module, site, given, places).view(self._rows, -1, site.width)
                if self._scales is not None:
                    z = z * self._scales[index].to(z)[:, None, None]
                self._experts[site.module] = z
            return node

        return hook

    def _places(self, tokens: int) -> Int[Tensor, "places"]:
        """The positions in every row, rows and positions as one."""
        return torch.arange(tokens).view(self._rows, -1)[:, self._positions.cpu()].flatten()

    def activations(self) -> Float[Tensor, "rows blocks positions width"]:
        """What was heard. Float32 on the CPU."""
        anatomy = self._vlm.anatomy
        whole = torch.zeros(self._rows, len(anatomy.blocks), len(self._positions), anatomy.width)
        for index, site in self._sites:
            if site.experts is None:
                node = self._nodes[site.module].detach()
                z = node.reshape(self._rows, -1, node.shape[-1])[:, self._positions.to(node.device)]
            else:
                z = self._experts[site.module]
            whole[:, index, :, site.columns] = z.float().cpu()
        return whole

    def gradients(self, value: Tensor, again: bool = False) -> Float[Tensor, "rows blocks positions width"]:
        """The derivatives of a number. Float32 on the CPU; 0 for units of experts that were not chosen.

        Raises:
            RecordingError: there is no graph from the nodes to the number.
        """
        anatomy = self._vlm.anatomy
        nodes = [self._nodes[site.module] for _, site in self._sites]
        try:
            found = torch.autograd.grad(value, nodes, retain_graph=again)
        except RuntimeError as error:
            raise RecordingError(
                f"{type(self._vlm.model).__name__} cannot be differentiated here ({str(error).splitlines()[0]}). Use a "
                "finder without gradients, such as contribution."
            ) from error
        whole = torch.zeros(self._rows, len(anatomy.blocks), len(self._positions), anatomy.width)
        for (index, site), own in zip(self._sites, found, strict=True):
            if site.experts is None:
                part = own.reshape(self._rows, -1, own.shape[-1])[:, self._positions.to(own.device)]
            else:
                part = self._of_experts(site, own)
            whole[:, index, :, site.columns] = part.float().cpu()
        return whole

    def _of_experts(self, site: WriteSite, gradient: Tensor) -> Float[Tensor, "rows positions width"]:
        """From the derivatives with respect to what experts gave to those with respect to their activations."""
        experts = site.experts
        assert experts is not None
        groups = experts.count if experts.layout == "sorted" else 1
        # what the experts give is added up, so that the derivative is the same for each
        gradient = gradient.view(groups, -1, gradient.shape[-1])[0]
        rows = gradient[self._places(len(gradient)).to(gradient.device)].float()
        z = self._experts[site.module]
        values = project(self._vlm.model, site, rows, z.reshape(-1, site.width)).view(z.shape)
        chosen = z.unflatten(-1, (experts.count, experts.width)).ne(0).any(-1)
        return values * chosen.repeat_interleave(experts.width, -1).to(values)


def _refuse_quantised(vlm: VLM) -> None:
    if vlm.quantised:
        raise OptionError(
            "Derivatives through quantised weights are not proved to be right, so finders that need them are refused. "
            "Use finder='contribution', or load the model without quantization."
        )
