"""What every neuron did over many positions, in a few sums: how often it was active, its mean, its largest value.

One forward over the prompt and the caption of a recording, with a listener on every write site. Positions are added up
as they come by, in float64, and no activation is kept. Sums of several recordings are added with ``+``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor, nn

from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.changes import emitting, heard_activations
from mmneurons.vlm.decoding import forced_inputs, image_positions
from mmneurons.vlm.hooks import Listener, evaluating, hooked, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = [
    "ABOVE",
    "HeardAs",
    "PositionSet",
    "Statistics",
    "activation_statistics",
    "check_heard_as",
    "check_position_set",
    "statistics_at",
]

PositionSet = Literal["image", "text", "all", "last"]
"""``"image"``: the picture's tokens. ``"text"``: all others, that is prompt, marks around the picture and caption.
``"all"``: both. ``"last"``: the position that emits the caption's last token."""

HeardAs = Literal["product", "gate"]
"""``"product"``: what the write site is given. ``"gate"``: what the activation function of a gated FFN gives."""

ABOVE = 0.1
"""What an activation has to exceed to be counted in ``Statistics.above`` (MANU)."""

_ROOM = 2**24
"""How many activations are looked at at once."""

_CLOSE = 1e-3
"""How far logits of the median step may be from the recorded ones, over the largest of them, in full precision."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over positions, for every unit. Units that a narrower block does not have are 0 everywhere.

    An expert that was not chosen at a position counts with z = 0 there; all rates and means are over all positions.

    Attributes:
        count: how many positions were added up.
        positive: at how many z > 0.
        above: at how many z > 0.1.
        total: the sum of z.
        absolute: the sum of |z|.
        squares: the sum of z².
        maximum: the largest z.
        widths: how many units each block has.
        positions: which positions, see ``PositionSet``.
        activation: what z is, see ``HeardAs``.
        recordings: how many recordings they come from.
    """

    count: int
    positive: Int64[Tensor, "blocks width"]
    above: Int64[Tensor, "blocks width"]
    total: Float64[Tensor, "blocks width"]
    absolute: Float64[Tensor, "blocks width"]
    squares: Float64[Tensor, "blocks width"]
    maximum: Float64[Tensor, "blocks width"]
    widths: tuple[int, ...]
    positions: str
    activation: str
    recordings: int = 1

    def __repr__(self) -> str:
        return f"Statistics({self.note})"

    def __add__(self, other: Statistics) -> Statistics:
        """Those of both.

        Raises:
            OptionError: they are of other positions, another activation, or another model.
        """
        for name in ("positions", "activation", "widths"):
            if getattr(self, name) != getattr(other, name):
                raise OptionError(
                    f"Statistics with {name}={getattr(self, name)!r} and {getattr(other, name)!r} cannot be added. "
                    "Take both in the same way, from the same model."
                )
        return Statistics(
            count=self.count + other.count,
            positive=self.positive + other.positive,
            above=self.above + other.above,
            total=self.total + other.total,
            absolute=self.absolute + other.absolute,
            squares=self.squares + other.squares,
            maximum=torch.maximum(self.maximum, other.maximum),
            widths=self.widths,
            positions=self.positions,
            activation=self.activation,
            recordings=self.recordings + other.recordings,
        )

    @property
    def there(self) -> Bool[Tensor, "blocks width"]:
        """Which units there are."""
        return torch.arange(self.positive.shape[1]) < torch.tensor(self.widths)[:, None]

    @property
    def probability(self) -> Float64[Tensor, "blocks width"]:
        """The share of positions at which z > 0."""
        return self.positive.double() / self.count

    @property
    def mean(self) -> Float64[Tensor, "blocks width"]:
        """The mean of z."""
        return self.total / self.count

    @property
    def variance(self) -> Float64[Tensor, "blocks width"]:
        """The mean of (z − mean)², from the two sums."""
        # the difference of two nearly equal numbers may come out below 0
        return (self.squares / self.count - self.mean.square()).clamp_min(0)

    @property
    def note(self) -> str:
        """What was added up, in words."""
        what = {"product": "the write sites' inputs", "gate": "the gates alone"}[self.activation]
        return f"{what}, {self.count} positions ({self.positions}) of {self.recordings} recordings"


def activation_statistics(
    vlm: VLM, recordings: Sequence[Recording], positions: PositionSet = "all", activation: HeardAs = "product"
) -> Statistics:
    """The statistics of one set of positions; arguments and errors as in ``statistics_at``."""
    return statistics_at(vlm, recordings, (positions,), activation)[positions]


def statistics_at(
    vlm: VLM,
    recordings: Sequence[Recording],
    positions: Sequence[PositionSet] = ("text", "image"),
    activation: HeardAs = "product",
) -> dict[PositionSet, Statistics]:
    """The statistics of several sets of positions, from one forward for each recording.

    The forward reads the prompt and the caption without its last token, as generation did. Nothing is left out among
    text positions, the first token included, whose activations are often far larger than others.

    Args:
        vlm: the model that was recorded.
        recordings: over whose positions is added up.
        positions: the sets.
        activation: what a neuron's activation is.

    Raises:
        OptionError: there are no recordings, ``positions`` or ``activation`` is something else, the gates cannot be
            heard, image tokens were shuffled, or there are none where they are asked for.
        RecordingError: a write site was not heard at every position, or the model does something else than was
            recorded.
    """
    for one in positions:
        check_position_set(one)
    check_heard_as(activation)
    if not recordings:
        raise OptionError("There are no recordings to add up. Pass at least one.")
    if activation == "gate" and not all(block.gated for block in vlm.anatomy.blocks):
        raise OptionError("activation='gate' needs gated FFNs whose gate can be heard; this model has others.")
    parts = [_one(vlm, recording, positions, activation) for recording in recordings]
    return {name: reduce(add, (part[name] for part in parts)) for name in positions}


def check_position_set(positions: str) -> None:
    """Refuse a set of positions that there is not.

    Raises:
        OptionError: ``positions`` is no ``PositionSet``.
    """
    if positions not in get_args(PositionSet):
        raise OptionError(f"positions={positions!r} is not possible. Choose {', '.join(get_args(PositionSet))}.")


def check_heard_as(activation: str) -> None:
    """Refuse an activation that there is not.

    Raises:
        OptionError: ``activation`` is no ``HeardAs``.
    """
    if activation not in get_args(HeardAs):
        raise OptionError(f"activation={activation!r} is not possible. Choose 'product' or 'gate'.")


def _one(
    vlm: VLM, recording: Recording, positions: Sequence[PositionSet], activation: HeardAs
) -> dict[PositionSet, Statistics]:
    if not len(recording.image_positions) and len(image_positions(vlm, recording.inputs)):
        raise OptionError("The image tokens of this recording were shuffled. Record without shuffle_image_tokens.")
    if "image" in positions and not len(recording.image_positions):
        raise OptionError("This recording has no image tokens. Ask for 'text', 'all' or 'last' positions.")
    steps = len(recording.token_ids)
    inputs = forced_inputs(vlm, recording.inputs, recording.token_ids.tolist())
    ids = inputs["decoder_input_ids" if vlm.is_encoder_decoder else "input_ids"]
    sums = _Sums(vlm, recording, positions, activation, ids.shape[1])
    with evaluating(vlm.model), sums.listening(), emitting(steps):
        logits = vlm.model(**inputs, use_cache=False).logits[0, -steps:].float().cpu()
    _check_same(vlm, logits, recording.logits)
    return sums.statistics()


def _check_same(vlm: VLM, logits: Float[Tensor, "steps ids"], recorded: Float[Tensor, "steps ids"]) -> None:
    """Refuse a model that does something else than was recorded.

    At the median step: in half precision a few steps of a mixture of experts may choose another expert.
    """
    said = recorded > torch.finfo(torch.float16).min
    apart = torch.where(said, logits - recorded, 0).abs().amax(1)
    size = torch.where(said, recorded, 0).abs().amax(1).clamp_min(1)
    apart = float((apart / size).median())
    if not apart <= max(_CLOSE, 8 * vlm.rounding):
        raise RecordingError(
            f"The model does something else than was recorded: its logits are {apart:.1g} of the largest away. Was it "
            "edited since, recorded with neurons held, or with image tokens shuffled? Record again."
        )


class _Sums:
    """The listeners of one forward, and what they added up."""

    def __init__(
        self, vlm: VLM, recording: Recording, positions: Sequence[PositionSet], activation: HeardAs, tokens: int
    ) -> None:
        self._vlm, self._recording, self._activation, self._tokens = vlm, recording, activation, tokens
        shape = (len(vlm.anatomy.blocks), vlm.anatomy.width)
        self._sums: dict[PositionSet, dict[str, Tensor]] = {
            one: {
                **{name: torch.zeros(shape, dtype=torch.long) for name in ("positive", "above")},
                **{
                    name: torch.zeros(shape, dtype=torch.double) for name in ("total", "absolute", "squares", "maximum")
                },
            }
            for one in positions
        }
        self._rows: dict[PositionSet, Tensor] = {}
        self._length = 0
        self._heard: list[str] = []

    def listening(self) -> ExitStack:
        """Listen until what is returned is closed."""
        inputs: dict[str, Listener] = {self._vlm.anatomy.blocks[0].module: self._enter}
        outputs: dict[str, Listener] = {}
        mixtures: dict[str, Callable[..., None]] = {}
        for index, block in enumerate(self._vlm.anatomy.blocks):
            for site in block.sites:
                if self._activation == "gate":
                    assert site.gate is not None
                    outputs[site.gate] = self._dense(index, site)
                elif site.experts is None:
                    inputs[site.module] = self._dense(index, site)
                else:
                    mixtures[site.module] = self._experts(index, site)
        stack = ExitStack()
        stack.enter_context(listening(self._vlm.model, inputs, outputs))
        stack.enter_context(hooked(self._vlm.model, mixtures, {}))
        return stack

    def statistics(self) -> dict[PositionSet, Statistics]:
        """What was added up.

        Raises:
            RecordingError: a write site was not heard once.
        """
        anatomy = self._vlm.anatomy
        for block in anatomy.blocks:
            for site in block.sites:
                if self._heard.count(site.module) != 1:
                    raise RecordingError(
                        f"{site.module!r} was heard {self._heard.count(site.module)} times in one forward: the hooks "
                        "were passed by. Was the model compiled, or a module replaced by a fused kernel, after it was "
                        "loaded?"
                    )
        return {
            name: Statistics(
                count=len(self._rows[name]),
                positive=sums["positive"],
                above=sums["above"],
                total=sums["total"],
                absolute=sums["absolute"],
                squares=sums["squares"],
                maximum=sums["maximum"],
                widths=tuple(block.width for block in anatomy.blocks),
                positions=name,
                activation=self._activation,
            )
            for name, sums in self._sums.items()
        }

    def _enter(self, x: Tensor) -> None:
        """Learn how many positions there are: some decoders put the picture in front of the tokens by themselves."""
        self._length = x.shape[:-1].numel()
        image = self._recording.image_positions
        if self._length < self._tokens or (len(image) and self._length != self._tokens):
            raise RecordingError(
                f"{self._length} positions came by where {self._tokens} tokens were given, so it is not known which "
                "are the picture's. Ask for a model whose prompt holds a placeholder for every image token."
            )
        text = torch.ones(self._length, dtype=torch.bool)
        text[: self._length - self._tokens] = False
        text[image] = False
        every: Mapping[PositionSet, Tensor] = {
            "image": image,
            "text": text.nonzero().flatten(),
            "all": torch.arange(self._length),
            "last": torch.tensor([self._length - 1]),
        }
        self._rows = {name: every[name] for name in self._sums}

    def _dense(self, block: int, site: WriteSite) -> Listener:
        def listener(x: Tensor) -> None:
            z = x.detach().reshape(-1, x.shape[-1])
            self._note(block, site, len(z), lambda rows: z[rows.to(z.device)])

        return listener

    def _experts(self, block: int, site: WriteSite) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            assert site.experts is not None
            tokens = given[0].shape[:-1].numel() // (site.experts.count if site.experts.layout == "sorted" else 1)
            self._note(
                block, site, tokens, lambda rows: heard_activations(module, site, given, rows.to(given[0].device))
            )

        return hook

    def _note(
        self,
        block: int,
        site: WriteSite,
        length: int,
        at: Callable[[Int[Tensor, "rows"]], Float[Tensor, "rows units"]],
    ) -> None:
        """Add up what ``at`` gives for the rows of every set."""
        if length != self._length:
            raise RecordingError(f"{site.module!r} was heard at {length} of {self._length} positions.")
        self._heard.append(site.module)
        for own in torch.arange(length).split(max(1, _ROOM // site.width)):
            if not any(bool(torch.isin(rows, own).any()) for rows in self._rows.values()):
                continue
            z = at(own).double()
            for name, rows in self._rows.items():
                inside = (rows[torch.isin(rows, own)] - own[0]).to(z.device)
                if len(inside):
                    first = bool(rows[0] >= own[0])
                    self._add(self._sums[name], block, site, z[inside], first)

    def _add(
        self, sums: Mapping[str, Tensor], block: int, site: WriteSite, z: Float64[Tensor, "rows units"], first: bool
    ) -> None:
        where = (block, site.columns)
        sums["positive"][where] += (z > 0).sum(0).cpu()
        sums["above"][where] += (z > ABOVE).sum(0).cpu()
        sums["total"][where] += z.sum(0).cpu()
        sums["absolute"][where] += z.abs().sum(0).cpu()
        sums["squares"][where] += z.square().sum(0).cpu()
        largest = z.amax(0).cpu()
        sums["maximum"][where] = largest if first else torch.maximum(sums["maximum"][where], largest)
