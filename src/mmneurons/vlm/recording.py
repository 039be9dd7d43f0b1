"""One generation, and what it leaves behind.

``record_generation`` runs ``generate`` once, with its cache, and listens: to what every write site is given (the
activations), to what else is written into the residual stream, to the stream where it enters and before the final norm.
Token s is emitted at position P − 1 + s, where P is the length of the prompt: the last position of the prefill, then
one position a step; so the last position of every forward is what is kept. Image positions are kept from the prefill,
for heatmaps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.anatomy import Gate, Norm, WriteSite
from mmneurons.vlm.changes import emitting, heard_activations
from mmneurons.vlm.decoding import (
    decoder_start,
    family_of,
    forced_inputs,
    generator,
    image_positions,
    never_said,
    prompt_length,
)
from mmneurons.vlm.hooks import Listener, evaluating, hooked, listening
from mmneurons.vlm.inputs import Request, collate
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import statistic_of
from mmneurons.vlm.shuffling import shuffled_image_tokens

__all__ = [
    "IMAGE_BUDGET",
    "LEAN",
    "Keep",
    "Recording",
    "Tape",
    "end_token_id",
    "image_activations",
    "picture_of",
    "record_forced",
    "record_generation",
    "shuffled",
]

IMAGE_BUDGET = 512 * 2**20
"""How many bytes of activations at image positions a recording keeps of one picture."""


@dataclass(frozen=True)
class Keep:
    """What a recording keeps beside what every finder needs.

    Attributes:
        image_budget: how many bytes of activations at image positions of one picture.
        gates: whether the gates alone are heard, too.
        shuffle: the seed of another order of the image tokens; None leaves them in theirs. Nothing is kept at image
            positions then, since a map of what was shuffled shows nothing.
    """

    image_budget: int = IMAGE_BUDGET
    gates: bool = False
    shuffle: int | None = None


LEAN = Keep(image_budget=0)
"""Nothing at image positions: what captions alone need."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What one generation left behind, on the CPU. Index s is the step that emitted ``token_ids[s]``.

    Attributes:
        request: what the model was asked.
        token_ids: what was generated, the end token included.
        activations: the input of every write site, float32; narrower FFNs are filled with 0.
        gates: the same before the product with the ungated half, for gated FFNs; None where they were not asked for
            (``gates=True``) or there is no gate to hear.
        logits: as the model gave them, before any logits processor, float32.
        log_probabilities: of each emitted token, natural logarithm, from these logits.
        entry: the residual stream where it enters block 0.
        writes: what every other write (attention) gave, in the order of ``anatomy.blocks``.
        statistics: what every norm of ``anatomy.norms`` multiplied by, float64.
        factors: the value of every gate of ``anatomy.gates``, float64.
        stream: the residual stream before the final norm.
        image_positions: where the picture's tokens lie in ``inputs["input_ids"]``.
        image_activations: the input of every write site at the image positions; None where that was over the budget.
        forced: the tokens were given, not generated.
        shuffle: the seed of the order that the image tokens were put into; None where they were in theirs.
        caption: the prefix and what was generated, without special tokens; empty without a tokenizer.
        spans: where each token stands in the caption, in characters.
    """

    request: Request
    token_ids: Int[Tensor, "steps"]
    activations: Float[Tensor, "steps blocks width"]
    gates: Float[Tensor, "steps blocks width"] | None
    logits: Float[Tensor, "steps vocabulary"]
    log_probabilities: Float[Tensor, "steps"]
    entry: Float[Tensor, "steps hidden"]
    writes: Float[Tensor, "steps writes hidden"]
    statistics: Float[Tensor, "steps norms"]
    factors: Float[Tensor, "steps gates"]
    stream: Float[Tensor, "steps hidden"]
    image_positions: Int[Tensor, "image"]
    image_activations: Float[Tensor, "blocks image width"] | None
    forced: bool = False
    shuffle: int | None = None
    caption: str = ""
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """What the model got: a batch of one, unpadded, image placeholders expanded."""
        return self.request.inputs

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        steps, blocks, width = self.activations.shape
        how, image = "given" if self.forced else "generated", len(self.image_positions)
        return f"Recording({steps} tokens {how}, {blocks} blocks of {width} neurons, {image} image tokens)"


def record_generation(
    vlm: VLM,
    requests: Sequence[Request],
    max_new_tokens: int = 50,
    seed: int | None = None,
    keep: Keep = Keep(),
    **options: object,
) -> list[Recording]:
    """Generate for a batch of requests and record it. Greedy, unless ``options`` (of ``generate``) say otherwise.

    What is not one token a step from one hypothesis (beam search, assisted decoding) is generated first and recorded by
    a second forward over what came out, which sees the same activations.

    Raises:
        OptionError: an option that ``generate`` does not have, or that asks for several answers.
        RecordingError: a hook did not fire once a step.
    """
    if own := _OURS & options.keys():
        raise OptionError(
            f"{', '.join(sorted(own))} cannot stand in generation={{…}}: pass options one by one, and those "
            "that find has itself, such as max_new_tokens, to find."
        )
    options = {"do_sample": False, **options, "num_beams": options.get("num_beams") or 1}
    if options.get("num_return_sequences", 1) != 1:
        raise OptionError("One caption is recorded per picture: num_return_sequences has to be 1.")
    if not family_of(vlm).padded and len({request.inputs["input_ids"].shape[1] for request in requests}) > 1:
        return [record_generation(vlm, [one], max_new_tokens, seed, keep, **options)[0] for one in requests]
    batch = collate(requests, _pad_token_id(vlm), left=not vlm.is_encoder_decoder)
    prompt = prompt_length(vlm, batch)
    ends = _end_ids(vlm, options)
    if not _is_stepwise(vlm, options):
        with shuffled(vlm, batch, keep.shuffle):
            sequences = _generate(vlm, batch, max_new_tokens, seed, options).sequences[:, prompt:].cpu()
        return [
            record_forced(vlm, request, _until_end(vlm, row, ends), keep)
            for request, row in zip(requests, sequences, strict=True)
        ]
    tape = Tape(vlm, requests, batch, keep)
    with tape.listening(), shuffled(vlm, batch, keep.shuffle):
        output = _generate(vlm, batch, max_new_tokens, seed, {**options, "output_logits": True})
    sequences = output.sequences[:, -len(output.logits) :]
    if vlm.is_encoder_decoder and output.sequences.shape[1] != len(output.logits) + len(decoder_start(vlm)):
        raise RecordingError(f"{type(vlm.model).__name__} began its answer with other tokens than its settings say.")
    tokens = [torch.tensor(_until_end(vlm, row, ends), dtype=torch.long) for row in sequences.cpu()]
    logits = [
        torch.stack([step[row] for step in output.logits[: len(own)]]).float().cpu() for row, own in enumerate(tokens)
    ]
    try:
        return tape.recordings(requests, tokens, logits, len(output.logits), forced=False)
    finally:
        tape.clear()


def record_forced(vlm: VLM, request: Request, token_ids: Sequence[int], keep: Keep = Keep()) -> Recording:
    """Record what the model does while it is made to say ``token_ids``: one forward over the prompt and the tokens.

    Raises:
        OptionError: there are no tokens.
        RecordingError: a hook did not fire once.
    """
    if not len(token_ids):
        raise OptionError("There is nothing to record: the caption holds no token.")
    tokens = torch.tensor(list(token_ids), dtype=torch.long)
    inputs = forced_inputs(vlm, request.inputs, tokens.tolist())
    tape = Tape(vlm, [request], inputs, keep, kept=len(tokens))
    with evaluating(vlm.model), tape.listening(), shuffled(vlm, inputs, keep.shuffle), emitting(len(tokens)):
        logits = vlm.model(**inputs, use_cache=False).logits[0, -len(tokens) :].float().cpu()
    try:
        (recording,) = tape.recordings([request], [tokens], [logits], len(tokens), forced=True)
    finally:
        tape.clear()
    return recording


def picture_of(recording: Recording) -> str:
    """16 hex digits that tell the picture of a recording, by what the model gets of it; empty without one."""
    seen = [value for _, value in sorted(recording.inputs.items()) if value.is_floating_point()]
    if not seen:
        return ""
    digest = hashlib.sha256()
    for value in seen:
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def shuffled(vlm: VLM, inputs: Mapping[str, Tensor], seed: int | None) -> AbstractContextManager[None]:
    """Put image tokens into the order of a seed while the block runs; into none where there is no seed."""
    return nullcontext() if seed is None else shuffled_image_tokens(vlm, inputs, seed)


def image_activations(
    vlm: VLM, recording: Recording, neurons: Sequence[tuple[int, int]]
) -> Float[Tensor, "neurons image"]:
    """The activations of some neurons at the image positions: from the recording, or else by one more prefill.

    Raises:
        OptionError: the recording has no image positions.
    """
    if not len(recording.image_positions):
        raise OptionError("There are no image tokens in this recording, so there is nowhere to look.")
    kept = recording.image_activations
    if kept is not None:
        return torch.stack([kept[block, :, column] for block, column in neurons]).float()
    found: dict[tuple[int, int], Tensor] = {}
    sites = {vlm.anatomy.site(*place).module: (place[0], vlm.anatomy.site(*place)) for place in neurons}

    def pick(block: int, site: WriteSite) -> Callable[..., None]:
        columns = [column for other, column in neurons if other == block and vlm.anatomy.site(block, column) == site]

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            rows = _activations_at(module, site, args, kwargs, recording.image_positions)
            found.update({(block, column): rows[:, column - site.start].float().cpu() for column in columns})

        return hook

    with evaluating(vlm.model), hooked(vlm.model, {name: pick(*site) for name, site in sites.items()}, {}):
        vlm.model(**recording.inputs, use_cache=False)
    return torch.stack([found[neuron] for neuron in neurons])


def _activations_at(
    module: nn.Module, site: WriteSite, args: tuple, kwargs: dict, positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions width"]:
    """What a write site is given at some positions, batch and positions as one."""
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    positions = positions.to(given[0].device)
    if site.experts is not None:
        return heard_activations(module, site, given, positions)
    return given[0].reshape(-1, given[0].shape[-1])[positions]


_OURS = {
    "disable_compile",
    "generation_config",
    "max_length",
    "max_new_tokens",
    "output_logits",
    "pad_token_id",
    "return_dict_in_generate",
}
_MANY_FORWARDS = (
    "assistant_model",
    "dola_layers",
    "guidance_scale",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
)


def _is_stepwise(vlm: VLM, options: dict[str, Any]) -> bool:
    """Whether generate runs the model once a token, with its cache; the checkpoint may ask for something else, too."""

    def asked(name: str) -> object:
        return options.get(name, getattr(generator(vlm).generation_config, name, None))

    once = all(asked(name) is None for name in _MANY_FORWARDS)
    return once and options["num_beams"] == 1 and asked("use_cache") is not False


class Tape:
    """The listeners of one recording, and what they heard."""

    def __init__(
        self, vlm: VLM, requests: Sequence[Request], batch: Mapping[str, Tensor], keep: Keep, kept: int = 1
    ) -> None:
        self._vlm, self._kept, self._rows, self._shuffle = vlm, kept, len(requests), keep.shuffle
        anatomy = vlm.anatomy
        self._heard: dict[str, list[Tensor]] = {}
        whole = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        none = torch.zeros(0, dtype=torch.long)
        self._own = [none if keep.shuffle is not None else image_positions(vlm, one.inputs) for one in requests]
        self._positions = (
            [
                positions + (max(0, whole - request.inputs["input_ids"].shape[1]) if len(requests) > 1 else 0)
                for positions, request in zip(self._own, requests, strict=True)
            ]
            if whole
            else self._own
        )
        size = torch.finfo(vlm.dtype).bits // 8
        longest = max((len(positions) for positions in self._positions), default=0)
        fits = longest * len(anatomy.blocks) * anatomy.width * size <= keep.image_budget
        # of experts those of a few neurons are computed when they are asked for
        fits = fits and not any(site.experts for block in anatomy.blocks for site in block.sites)
        self._slices = [_as_slice(positions) for positions in self._positions]
        shapes = [(len(anatomy.blocks), len(positions), anatomy.width) for positions in self._positions]
        equal = all(block.width == anatomy.width for block in anatomy.blocks)
        # every number is written over where all FFNs are as wide, so that filling would be a second pass over them
        make = torch.empty if equal else torch.zeros
        self._images = [make(shape, dtype=vlm.dtype) for shape in shapes] if fits else None
        self._inputs: dict[str, Listener] = {
            anatomy.blocks[0].module: self._note("entry"),
            anatomy.end: self._note("stream"),
        }
        self._outputs: dict[str, Listener] = {gate.module: self._note_factor(gate) for gate in anatomy.gates}
        self._inputs |= {norm.module: self._note_statistic(norm) for norm in anatomy.norms}
        self._mixtures: dict[str, Callable[..., None]] = {}
        for index, block in enumerate(anatomy.blocks):
            self._outputs |= {write.module: self._note(write.module) for write in block.writes}
            for site in block.sites:
                if site.experts is not None:
                    self._mixtures[site.module] = self._note_experts(site)
                    continue
                self._inputs[site.module] = self._note_activations(index, site)
                if keep.gates and site.gate:
                    self._outputs[site.gate] = self._note(f"gate {site.module}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs."""
        with listening(self._vlm.model, self._inputs, self._outputs), hooked(self._vlm.model, self._mixtures, {}):
            yield

    def clear(self) -> None:
        """Let go of what was heard.

        The listeners refer to the tape and the tape to them, so it would wait for Python's collector of cycles, which
        counts objects and not their gigabytes.
        """
        self._heard.clear()
        self._images = None
        self._inputs, self._outputs, self._mixtures = {}, {}, {}

    def _last(self, x: Tensor) -> Float[Tensor, "rows kept width"]:
        """The positions that are kept; some modules are given batch and positions as one dimension."""
        if x.dim() == 2:
            x = x.view(self._rows, -1, x.shape[-1])
        # a step of generation is kept whole, and a slice of it would cost as much as the copy
        return x if x.shape[1] == self._kept else x[:, -self._kept :]

    def _note(self, key: str) -> Listener:
        heard = self._heard.setdefault(key, [])

        def listener(x: Tensor) -> None:
            heard.append(self._last(x).clone())

        return listener

    def _note_statistic(self, norm: Norm) -> Listener:
        heard = self._heard.setdefault(f"statistic {norm.module}", [])

        def listener(x: Tensor) -> None:
            heard.append(statistic_of(norm, self._last(x))[..., None])

        return listener

    def _note_factor(self, gate: Gate) -> Listener:
        heard = self._heard.setdefault(f"factor {gate.module}", [])

        def listener(x: Tensor) -> None:
            heard.append(torch.sigmoid(self._last(x).double()))

        return listener

    def _note_activations(self, block: int, site: WriteSite) -> Listener:
        note = self._note(f"activations {site.module}")
        prefilled = False
        last = max((int(own.max()) for own in self._positions if len(own)), default=-1)

        def listener(x: Tensor) -> None:
            nonlocal prefilled
            note(x)
            if self._images is not None and not prefilled:
                rows = x.detach().reshape(self._rows, -1, x.shape[-1])
                if rows.shape[1] <= last:
                    raise RecordingError(
                        f"{site.module!r} was not heard while the prompt was read: the hooks were passed by. Was the "
                        "model compiled after it was loaded?"
                    )
                for kept, row, own in zip(self._images, rows, self._slices, strict=True):
                    kept[block, :, site.columns] = row[own]
            prefilled = True

        return listener

    def _note_experts(self, site: WriteSite) -> Callable[..., None]:
        heard = self._heard.setdefault(f"activations {site.module}", [])

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            tokens = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)).shape[:-1].numel()
            assert site.experts is not None
            tokens //= site.experts.count if site.experts.layout == "sorted" else 1
            positions = torch.arange(tokens).view(self._rows, -1)[:, -self._kept :]
            z = _activations_at(module, site, args, kwargs, positions.flatten())
            heard.append(z.view(self._rows, -1, z.shape[-1]))

        return hook

    def recordings(
        self,
        requests: Sequence[Request],
        tokens: Sequence[Tensor],
        logits: Sequence[Tensor],
        emitted: int,
        forced: bool,
    ) -> list[Recording]:
        """One for every row of a batch that emitted so many steps; tokens and logits go up to the row's end token."""
        anatomy = self._vlm.anatomy
        steps = [len(own) for own in tokens]
        writes = [write.module for block in anatomy.blocks for write in block.writes]
        activations = self._beside("activations", steps, emitted)
        hears = all(f"gate {site.module}" in self._heard for block in anatomy.blocks for site in block.sites)
        gated = self._beside("gate", steps, emitted) if hears else None
        written = self._stack(writes, steps, emitted, anatomy.hidden)
        entry, stream = (self._stack([key], steps, emitted, anatomy.hidden) for key in ("entry", "stream"))
        statistics = self._stack(
            [f"statistic {norm.module}" for norm in anatomy.norms], steps, emitted, 1, torch.double
        )
        factors = self._stack([f"factor {gate.module}" for gate in anatomy.gates], steps, emitted, 1, torch.double)
        return [
            Recording(
                request=request,
                token_ids=tokens[row],
                activations=activations[row],
                gates=None if gated is None else gated[row],
                logits=logits[row],
                log_probabilities=logits[row].log_softmax(-1).gather(1, tokens[row][:, None])[:, 0],
                entry=entry[row][:, 0],
                writes=written[row],
                statistics=statistics[row][..., 0],
                factors=factors[row][..., 0],
                stream=stream[row][:, 0],
                image_positions=self._own[row],
                image_activations=None if self._images is None else self._images[row],
                forced=forced,
                shuffle=self._shuffle,
            )
            for row, request in enumerate(requests)
        ]

    def _beside(self, what: str, steps: Sequence[int], emitted: int) -> list[Float[Tensor, "steps blocks width"]]:
        """What was heard of all write sites, those of a block beside one another."""
        anatomy = self._vlm.anatomy
        whole = [torch.zeros(own, len(anatomy.blocks), anatomy.width) for own in steps]
        for index, block in enumerate(anatomy.blocks):
            for site in block.sites:
                heard = self._stack([f"{what} {site.module}"], steps, emitted, site.width)
                for row, own in zip(whole, heard, strict=True):
                    row[:, index, site.columns] = own[:, 0]
        return whole

    def _stack(
        self, keys: Sequence[str], steps: Sequence[int], emitted: int, width: int, kind: torch.dtype = torch.float32
    ) -> list[Float[Tensor, "steps keys width"]]:
        """What was heard under some keys, for every row its own tensor, so that none keeps the others in memory."""
        stacked = [torch.zeros(own, len(keys), width, dtype=kind) for own in steps]
        for place, key in enumerate(keys):
            heard = torch.cat(self._heard[key], 1) if self._heard[key] else torch.zeros(len(steps), 0, width)
            if heard.shape[1] != emitted:
                raise RecordingError(
                    f"{key!r} was heard at {heard.shape[1]} positions while {emitted} tokens were generated: the hooks "
                    "were passed by, or something else ran the model. Was it compiled, or a module replaced by a fused "
                    "kernel, after it was loaded?"
                )
            heard = heard.cpu()
            for row, own in enumerate(stacked):
                own[:, place, : heard.shape[-1]] = heard[row, : len(own)]
        return stacked


def _as_slice(positions: Int[Tensor, "positions"]) -> slice | Tensor:
    """Positions that lie side by side, as most pictures' do, as a slice, which is read without a copy."""
    if len(positions) and int(positions[-1] - positions[0]) == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def _generate(
    vlm: VLM, batch: dict[str, Tensor], max_new_tokens: int, seed: int | None, options: dict[str, Any]
) -> Any:  # noqa: ANN401
    # what generate returns depends on its options in a way that types do not tell
    model: Any = vlm.model
    silent = never_said(vlm, options.get("suppress_tokens"))
    options = {**options, "suppress_tokens": sorted(silent) or None}
    if not options["do_sample"]:
        options |= {"temperature": None, "top_p": None, "top_k": None} | options
    with evaluating(vlm.model), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            return model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                **({} if family_of(vlm).end else {"pad_token_id": _pad_token_id(vlm)}),
                return_dict_in_generate=True,
                disable_compile=True,
                **options,
            )
        except ValueError as error:
            if "model_kwargs" in str(error) or "generation" in str(error).lower():
                raise OptionError(f"generate refused these options: {error}") from error
            raise


def _pad_token_id(vlm: VLM) -> int:
    own = getattr(generator(vlm).generation_config, "pad_token_id", None)
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    candidates = [own, getattr(tokenizer, "pad_token_id", None), *_end_ids(vlm), 0]
    return next(candidate for candidate in candidates if candidate is not None)


def end_token_id(vlm: VLM) -> list[int]:
    """The token that ends a caption, as a list of one; empty where the model names none."""
    return _end_ids(vlm)[:1]


def _end_ids(vlm: VLM, options: dict[str, Any] | None = None) -> list[int]:
    ends = (options or {}).get("eos_token_id")
    if (named := family_of(vlm).end) is not None:
        ends = getattr(vlm.model.config.get_text_config(decoder=True), named)
    ends = getattr(generator(vlm).generation_config, "eos_token_id", None) if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else [int(end) for end in ends]


def _until_end(vlm: VLM, row: Tensor, ends: Sequence[int]) -> list[int]:
    """What a row says: up to its end token, or up to the padding behind it where something else ended it."""
    tokens, pad = row.tolist(), _pad_token_id(vlm)
    last = next((index for index, token in enumerate(tokens) if token in ends), None)
    if last is not None:
        return tokens[: last + 1]
    while len(tokens) > 1 and tokens[-1] == pad:
        tokens.pop()
    return tokens
