"""One generation, and what it leaves behind.

``record_generation`` runs ``generate`` once, with its cache, and listens: to what every write site is given (the
activations), to what else is written into the residual stream, to the stream where it enters and before the final norm.
Token s is emitted at position P − 1 + s, where P is the length of the prompt: the last position of the prefill, then
one position a step; so the last position of every forward is what is kept. Image positions are kept from the prefill,
for heatmaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.hooks import Listener, evaluating, listening
from mmneurons.vlm.inputs import Request, collate
from mmneurons.vlm.model import VLM

__all__ = [
    "IMAGE_BUDGET",
    "Keep",
    "Recording",
    "end_token_id",
    "image_activations",
    "record_forced",
    "record_generation",
]

IMAGE_BUDGET = 512 * 2**20
"""How many bytes of activations at image positions a recording keeps of one picture."""


@dataclass(frozen=True)
class Keep:
    """What a recording keeps beside what every finder needs.

    Attributes:
        image_budget: how many bytes of activations at image positions of one picture.
        gates: whether the gates alone are heard, too.
    """

    image_budget: int = IMAGE_BUDGET
    gates: bool = False


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
        stream: the residual stream before the final norm.
        image_positions: where the picture's tokens lie in ``inputs["input_ids"]``.
        image_activations: the input of every write site at the image positions; None where that was over the budget.
        forced: the tokens were given, not generated.
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
    stream: Float[Tensor, "steps hidden"]
    image_positions: Int[Tensor, "image"]
    image_activations: Float[Tensor, "blocks image width"] | None
    forced: bool = False
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
    batch = collate(requests, _pad_token_id(vlm))
    prompt = batch["input_ids"].shape[1]
    ends = _end_ids(vlm, options)
    if not _is_stepwise(vlm, options):
        sequences = _generate(vlm, batch, max_new_tokens, seed, options).sequences[:, prompt:].cpu()
        return [
            record_forced(vlm, request, _until_end(vlm, row, ends), keep)
            for request, row in zip(requests, sequences, strict=True)
        ]
    tape = _Tape(vlm, batch["input_ids"], keep)
    with listening(vlm.model, tape.inputs, tape.outputs):
        output = _generate(vlm, batch, max_new_tokens, seed, {**options, "output_logits": True})
    sequences = output.sequences[:, prompt:]
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
    prompt = request.inputs["input_ids"]
    fed = torch.cat([prompt, tokens[None, :-1].to(prompt)], 1)
    inputs = {**request.inputs, "input_ids": fed, "attention_mask": torch.ones_like(fed)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(tokens) - 1))
    tape = _Tape(vlm, fed, keep, kept=len(tokens))
    with evaluating(vlm.model), listening(vlm.model, tape.inputs, tape.outputs):
        logits = vlm.model(**inputs, use_cache=False).logits[0, -len(tokens) :].float().cpu()
    try:
        (recording,) = tape.recordings([request], [tokens], [logits], len(tokens), forced=True)
    finally:
        tape.clear()
    return recording


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
    sites = {block: vlm.anatomy.blocks[block].ffn.module for block, _ in neurons}

    def pick(block: int) -> Listener:
        columns = [column for other, column in neurons if other == block]

        def listener(x: Tensor) -> None:
            rows = x[0, recording.image_positions.to(x.device)]
            found.update({(block, column): rows[:, column].float().cpu() for column in columns})

        return listener

    with evaluating(vlm.model), listening(vlm.model, {site: pick(block) for block, site in sites.items()}):
        vlm.model(**recording.inputs, use_cache=False)
    return torch.stack([found[neuron] for neuron in neurons])


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
        return options.get(name, getattr(vlm.model.generation_config, name, None))

    once = all(asked(name) is None for name in _MANY_FORWARDS)
    return once and options["num_beams"] == 1 and asked("use_cache") is not False


class _Tape:
    """The listeners of one recording, and what they heard."""

    def __init__(self, vlm: VLM, input_ids: Tensor, keep: Keep, kept: int = 1) -> None:
        self._vlm, self._kept = vlm, kept
        anatomy = vlm.anatomy
        self._heard: dict[str, list[Tensor]] = {}
        image = vlm.image_token_id
        self._positions = [(row == image).nonzero().flatten() for row in input_ids]
        size = torch.finfo(vlm.dtype).bits // 8
        longest = max((len(positions) for positions in self._positions), default=0)
        fits = longest * len(anatomy.blocks) * anatomy.width * size <= keep.image_budget
        self._slices = [_as_slice(positions) for positions in self._positions]
        shapes = [(len(anatomy.blocks), len(positions), anatomy.width) for positions in self._positions]
        equal = all(block.ffn.width == anatomy.width for block in anatomy.blocks)
        # every number is written over where all FFNs are as wide, so that filling would be a second pass over them
        make = torch.empty if equal else torch.zeros
        self._images = [make(shape, dtype=vlm.dtype) for shape in shapes] if fits else None
        self.inputs: dict[str, Listener] = {
            anatomy.blocks[0].module: self._note("entry"),
            anatomy.norm.module: self._note("stream"),
        }
        self.outputs: dict[str, Listener] = {}
        for index, block in enumerate(anatomy.blocks):
            self.inputs[block.ffn.module] = self._note_activations(index)
            self.outputs |= {write.module: self._note(write.module) for write in block.writes}
            if keep.gates and block.ffn.gate:
                self.outputs[block.ffn.gate] = self._note(f"gate {index}")

    def clear(self) -> None:
        """Let go of what was heard.

        The listeners refer to the tape and the tape to them, so it would wait for Python's collector of cycles, which
        counts objects and not their gigabytes.
        """
        self._heard.clear()
        self._images = None
        self.inputs, self.outputs = {}, {}

    def _note(self, key: str) -> Listener:
        heard = self._heard.setdefault(key, [])
        kept = self._kept

        def listener(x: Tensor) -> None:
            # a step of generation is kept whole, and a slice of it would cost as much as the copy
            heard.append((x if x.shape[1] == kept else x[:, -kept:]).clone())

        return listener

    def _note_activations(self, block: int) -> Listener:
        note = self._note(f"activations {block}")
        prefilled = False

        def listener(x: Tensor) -> None:
            nonlocal prefilled
            note(x)
            if self._images is not None and not prefilled:
                for kept, row, own in zip(self._images, x.detach(), self._slices, strict=True):
                    kept[block, :, : x.shape[-1]] = row[own]
            prefilled = True

        return listener

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
        columns = [f"activations {index}" for index in range(len(anatomy.blocks))]
        gates = [key for index in range(len(anatomy.blocks)) if (key := f"gate {index}") in self._heard]
        writes = [write.module for block in anatomy.blocks for write in block.writes]
        activations = self._stack(columns, steps, emitted, anatomy.width)
        gated = self._stack(gates, steps, emitted, anatomy.width) if len(gates) == len(anatomy.blocks) else None
        written = self._stack(writes, steps, emitted, anatomy.hidden)
        entry, stream = (self._stack([key], steps, emitted, anatomy.hidden) for key in ("entry", "stream"))
        image = self._vlm.image_token_id
        prompts = [request.inputs["input_ids"][0].cpu() for request in requests]
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
                stream=stream[row][:, 0],
                image_positions=(prompts[row] == (-1 if image is None else image)).nonzero().flatten(),
                image_activations=None if self._images is None else self._images[row],
                forced=forced,
            )
            for row, request in enumerate(requests)
        ]

    def _stack(
        self, keys: Sequence[str], steps: Sequence[int], emitted: int, width: int
    ) -> list[Float[Tensor, "steps keys width"]]:
        """What was heard under some keys, for every row its own tensor, so that none keeps the others in memory."""
        stacked = [torch.zeros(own, len(keys), width) for own in steps]
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
    silent: set[int] = set(options.get("suppress_tokens") or model.generation_config.suppress_tokens or ())
    if vlm.image_token_id is not None:
        # a generated placeholder would be taken for a part of the picture when the caption is fed again
        silent.add(vlm.image_token_id)
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
                pad_token_id=_pad_token_id(vlm),
                return_dict_in_generate=True,
                disable_compile=True,
                **options,
            )
        except ValueError as error:
            if "model_kwargs" in str(error) or "generation" in str(error).lower():
                raise OptionError(f"generate refused these options: {error}") from error
            raise


def _pad_token_id(vlm: VLM) -> int:
    own = getattr(vlm.model.generation_config, "pad_token_id", None)
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    candidates = [own, getattr(tokenizer, "pad_token_id", None), *_end_ids(vlm), 0]
    return next(candidate for candidate in candidates if candidate is not None)


def end_token_id(vlm: VLM) -> list[int]:
    """The token that ends a caption, as a list of one; empty where the model names none."""
    return _end_ids(vlm)[:1]


def _end_ids(vlm: VLM, options: dict[str, Any] | None = None) -> list[int]:
    ends = (options or {}).get("eos_token_id")
    ends = getattr(vlm.model.generation_config, "eos_token_id", None) if ends is None else ends
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
