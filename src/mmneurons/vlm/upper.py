"""Running only the upper part of a model, again and again: what lies below is answered from memory.

Below the lowest write site that changes, nothing changes. So the model is run once, and what every module gave that
was done before that site is kept: the vision tower, the embeddings, the blocks below, and of the site's own block
what comes before it. Later runs go the same way through the model's own code, and these modules give at once what
they gave then. All blocks above, the final norm and the head run in earnest, over all positions, without keys and
values of theirs, so the result is the whole forward's, to rounding; that is checked when the memory is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmneurons.errors import RecordingError
from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.changes import heard_activations
from mmneurons.vlm.decoding import family_of, forced_inputs
from mmneurons.vlm.derivatives import constant_weights
from mmneurons.vlm.hooks import evaluating, hooked
from mmneurons.vlm.inputs import Request, collate
from mmneurons.vlm.model import VLM
from mmneurons.vlm.sites import split

__all__ = ["Added", "Said", "Upper", "upper"]

_CLOSE = 1e-4
"""How far logits may be from those of a whole forward, over the largest of them, in full precision."""


@dataclass(frozen=True, eq=False)
class Said:
    """Tokens that the model is made to say, and which steps of them are looked at.

    Attributes:
        request: what the model is asked.
        token_ids: what it says; the last one is not fed.
        steps: indices into ``token_ids``; the logits that emit these tokens are wanted.
    """

    request: Request
    token_ids: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Added:
    """What is added to columns of a block while it runs.

    Attributes:
        block: the block.
        columns: of it, each once.
        vectors: what each gets; derivatives go through it.
    """

    block: int
    columns: Int[Tensor, "neurons"]
    vectors: Float[Tensor, "neurons hidden"]


@dataclass(frozen=True, eq=False)
class _Part:
    """One batch.

    Attributes:
        inputs: of the forward.
        rows: of the batch, one for each logit that is wanted.
        places: positions of the decoder, likewise.
        order: where these logits belong among all.
        answers: what modules gave, call by call.
    """

    inputs: Mapping[str, Tensor]
    rows: Int[Tensor, "wanted"]
    places: Int[Tensor, "wanted"]
    order: Int[Tensor, "wanted"]
    answers: Mapping[str, Sequence[object]]


@dataclass(frozen=True, eq=False)
class Upper:
    """The upper part of a model over some sequences.

    Attributes:
        vlm: the model.
        block: the lowest block whose write sites may change.
        parts: the batches.
        whole: whether the whole model is run: nothing is remembered, or the family does not allow to leave something
            out.
    """

    vlm: VLM
    block: int
    parts: tuple[_Part, ...]
    whole: bool = False

    def logits(self, added: Sequence[Added] = ()) -> Float[Tensor, "wanted vocabulary"]:
        """The logits that are wanted, float32, sequence by sequence; with a graph where ``added`` asks for one."""
        found = [self._run(part, added) for part in self.parts]
        order = torch.cat([part.order for part in self.parts])
        return torch.cat(found)[order.argsort().to(found[0].device)]

    def _run(self, part: _Part, added: Sequence[Added]) -> Float[Tensor, "wanted vocabulary"]:
        gradient = any(own.vectors.requires_grad for own in added)
        with ExitStack() as stack:
            if gradient:
                stack.enter_context(constant_weights(self.vlm.model))
            stack.enter_context(evaluating(self.vlm.model))
            stack.enter_context(torch.set_grad_enabled(gradient))
            stack.enter_context(hooked(self.vlm.model, {}, _adding(self.vlm, added)))
            stack.enter_context(_answered(self.vlm.model, part.answers))
            return _forward(self.vlm, part)


def upper(vlm: VLM, said: Sequence[Said], block: int, size: int = 16, remember: bool = True) -> Upper:
    """Run sequences once, so that later only what lies above a block's write sites has to be run.

    Args:
        vlm: the model.
        said: the sequences.
        block: the lowest block whose write sites will change.
        size: how many sequences a batch has.
        remember: False where the sequences will be run once or twice: nothing is run now, and the whole model then.

    Raises:
        RecordingError: a batch does not give what its sequences give alone.
    """
    vlm.anatomy.name(block, 0)
    starts = torch.tensor([0, *(len(one.steps) for one in said)]).cumsum(0)
    parts = []
    for group in _groups(vlm, said, size):
        bare = _batch(vlm, [said[index] for index in group])
        order = torch.cat([torch.arange(int(starts[index]), int(starts[index + 1])) for index in group])
        parts.append(replace(bare, order=order))
    if not remember:
        return Upper(vlm, block, tuple(parts), whole=True)
    kept = tuple(_remember(vlm, part, block) for part in parts)
    whole = any(part is None for part in kept)
    return Upper(vlm, block, tuple(part or bare for part, bare in zip(kept, parts, strict=True)), whole)


def _groups(vlm: VLM, said: Sequence[Said], size: int) -> Iterator[list[int]]:
    """Sequences that are run together: such of about the same length, or of the same one where padding would matter.

    What is asked of pictures and what is asked without one are never together.
    """
    lengths = [_length(vlm, one) for one in said]
    names = [sorted(one.request.inputs) for one in said]
    ordered = sorted(range(len(said)), key=lambda index: (names[index], lengths[index]))
    padded = family_of(vlm).padded and not vlm.is_encoder_decoder and family_of(vlm).unread == 0
    group: list[int] = []
    for index in ordered:
        same = not group or (
            names[index] == names[group[0]]
            and (padded or (lengths[index] == lengths[group[0]] and _shapes(said[index]) == _shapes(said[group[0]])))
        )
        if group and (len(group) == size or not same):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _length(vlm: VLM, one: Said) -> int:
    prompt = 0 if vlm.is_encoder_decoder else one.request.inputs["input_ids"].shape[1]
    return prompt + len(one.token_ids)


def _shapes(one: Said) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in one.request.inputs.items()]


def _batch(vlm: VLM, said: Sequence[Said]) -> _Part:
    fed = [forced_inputs(vlm, one.request.inputs, one.token_ids) for one in said]
    requests = [Request(inputs, None, "", None) for inputs in fed]
    own = "decoder_input_ids" if vlm.is_encoder_decoder else "input_ids"
    # on the right, so that every position keeps its number, whatever a family counts positions by
    batch = collate(requests, 0, left=False) if len(fed) > 1 else dict(fed[0])
    rows, places = [], []
    for row, (one, inputs) in enumerate(zip(said, fed, strict=True)):
        behind = inputs[own].shape[1] - len(one.token_ids)
        rows += [row] * len(one.steps)
        places += [behind + step for step in one.steps]
    return _Part(batch, torch.tensor(rows), torch.tensor(places), torch.arange(len(rows)), {})


def _forward(vlm: VLM, part: _Part) -> Float[Tensor, "wanted vocabulary"]:
    """The logits at the wanted places: the head is given these alone."""
    missed = [True]

    def pick(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # the decoder may have put a picture's tokens in front
        missed[0] = False
        hidden = args[0]
        behind = hidden.shape[1] - _own_ids(vlm, part.inputs).shape[1]
        rows, places = part.rows.to(hidden.device), part.places.to(hidden.device)
        return (hidden[rows, places + behind][None], *args[1:]), kwargs

    head = vlm.anatomy.head.transform or vlm.anatomy.head.module
    with hooked(vlm.model, {head: pick}, {}):
        logits = vlm.model(**part.inputs, use_cache=False).logits
    if missed[0]:
        raise RecordingError(f"The output head {head!r} was passed by, so its positions cannot be chosen.")
    return logits[0].float()


def _own_ids(vlm: VLM, inputs: Mapping[str, Tensor]) -> Tensor:
    return inputs["decoder_input_ids" if vlm.is_encoder_decoder else "input_ids"]


def _remember(vlm: VLM, part: _Part, block: int) -> _Part | None:
    """Run a batch and keep what is done before a block's first write site; None where that changes the result."""
    answers, expected = _listen(vlm, part, block)
    for lean in (True, False):
        own = replace(part, answers=_thinned(vlm, answers, block) if lean else answers)
        # twice, because a module that writes into what it is given would spoil it for the next time
        if all(_agrees(vlm, own, expected) for _ in range(2)):
            return own
        answers, _ = _listen(vlm, part, block)
    return None


def _agrees(vlm: VLM, part: _Part, expected: Tensor) -> bool:
    try:
        with evaluating(vlm.model), _answered(vlm.model, part.answers):
            seen = _forward(vlm, part)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    said = expected > torch.finfo(torch.float16).min
    bound = max(_CLOSE, 8 * vlm.rounding) * float(expected[said].abs().max().clamp_min(1))
    return bool((seen[said] - expected[said]).abs().max() <= bound)


def _listen(vlm: VLM, part: _Part, block: int) -> tuple[dict[str, list[object]], Float[Tensor, "wanted vocabulary"]]:
    """What every module gave that was done before a block's first write site, the site included; outermost ones.

    And the logits.
    """
    sites = {site.module for site in vlm.anatomy.blocks[block].sites}
    under: list[tuple[str, list[tuple[str, object]]]] = []
    top: list[tuple[str, object]] = []
    done = False

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple, _kwargs: dict) -> None:
            if not done:
                under.append((name, []))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> None:
            nonlocal done
            if done:
                return
            under.pop()
            # what was inside is never called where this module answers
            (under[-1][1] if under else top).append((name, _own(output)))
            done = name in sites

        return hook

    names = [name for name, _ in vlm.model.named_modules() if name]
    before = {name: enter(name) for name in names}
    after = {name: leave(name) for name in names}
    with evaluating(vlm.model), hooked(vlm.model, before, after):
        logits = _forward(vlm, part)
    answers: dict[str, list[object]] = {}
    for name, output in [*top, *(one for _, inside in under for one in inside)]:
        answers.setdefault(name, []).append(output)
    return answers, logits


def _thinned(vlm: VLM, answers: Mapping[str, list[object]], block: int) -> dict[str, list[object]]:
    """Without what blocks gave whose successor answers, too: nothing reads it."""
    below = {one.module for one in vlm.anatomy.blocks[: max(0, block - 1)]}
    return {name: [_hollow(one) for one in own] if name in below else list(own) for name, own in answers.items()}


def _hollow(output: object) -> object:
    """Something of the same shape that takes no room."""
    if isinstance(output, Tensor):
        return output.new_zeros(1).expand(output.shape)
    if isinstance(output, tuple) and type(output) is tuple:
        return tuple(_hollow(one) for one in output)
    return output


@contextmanager
def _answered(model: nn.Module, answers: Mapping[str, Sequence[object]]) -> Iterator[None]:
    """Modules give what they are said to, call by call, and what they compute from then on."""
    with ExitStack() as stack:
        for name, outputs in answers.items():
            module = model.get_submodule(name)
            own = module.__dict__.get("forward")
            module.__dict__["forward"] = _answering(list(outputs), module.forward)
            stack.callback(_put_back, module, own)
        yield


def _answering(outputs: list[object], real: Callable[..., object]) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> object:
        return _own(outputs.pop(0)) if outputs else real(*args, **kwargs)

    return forward


def _own(output: object) -> object:
    """A container of one's own: some callers put other things into what a module gave (Qwen-VL)."""
    return copy.copy(output) if isinstance(output, dict | list) else output


def _put_back(module: nn.Module, own: object) -> None:
    if own is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = own


def _adding(vlm: VLM, added: Sequence[Added]) -> dict[str, Callable[..., Tensor]]:
    """Hooks that add to what write sites give what the vectors would have written."""
    hooks: dict[str, Callable[..., Tensor]] = {}
    for own in added:
        for site, inside, columns in split(vlm.anatomy.blocks[own.block], own.columns):
            hooks[site.module] = _adds(site, columns, own.vectors[inside])
    return hooks


def _adds(
    site: WriteSite, columns: Int[Tensor, "neurons"], vectors: Float[Tensor, "neurons hidden"]
) -> Callable[..., Tensor]:
    def dense(_module: nn.Module, args: tuple, _kwargs: dict, output: Tensor) -> Tensor:
        z = args[0][..., columns.to(args[0].device)]
        return output + (z.to(vectors) @ vectors).to(output)

    def mixture(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        assert site.experts is not None
        sorted_ = site.experts.layout == "sorted"
        count = given[0].shape[:-1].numel() // (site.experts.count if sorted_ else 1)
        with torch.set_grad_enabled(given[0].requires_grad):
            z = heard_activations(module, site, given, torch.arange(count, device=given[0].device))
        more = (z[:, columns.to(z.device)].to(vectors) @ vectors).to(output)
        if not sorted_:
            return output + more.view(output.shape)
        # one row of several for every token is enough
        first = torch.zeros_like(output.view(site.experts.count, count, -1))
        return output + torch.cat([more[None], first[1:]]).view(output.shape)

    return dense if site.experts is None else mixture
