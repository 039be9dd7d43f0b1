"""Which edits are in force in a model, put into its weights and taken out again without a trace.

The weights of edited columns are at any time ``cast(base + Σ δ)`` over the edits in force: summed one after the other
in the order of their ids, in float32, and cast once. The base columns are kept bit for bit. So it makes no difference
in which order edits come and go, and when the last one goes, every bit is what it was.

Where a weight cannot be written to, because it is quantised or accelerate keeps it elsewhere, the edit is added to what
the write site gives, by a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmneurons.edits.edit import Edit
from mmneurons.edits.writable import writable
from mmneurons.errors import EditError
from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.changes import heard_activations
from mmneurons.vlm.decoding import generator
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.hooks import hooked
from mmneurons.vlm.model import VLM
from mmneurons.vlm.sites import split
from mmneurons.vlm.weights import bits, fetched

__all__ = ["active", "applied", "apply", "base_fingerprint", "check_fits", "revert", "shared"]

_SAMPLE = 32
"""How many numbers of each weight are compared besides torch's counter, which misses what is written to ``.data``."""

_CHUNK = 256
"""How many positions of a mixture of experts are computed at once."""


def apply(vlm: VLM, edit: Edit, force: bool = False) -> None:
    """Put an edit in force, until it is withdrawn.

    Args:
        vlm: the model.
        edit: the edit.
        force: apply it although it was made of a model with other weights.

    Raises:
        EditError: the edit is in force already, does not fit the model's shape, is of other weights, would make weights
            that the model's dtype cannot hold, or an edited column was written to from outside. Nothing was changed.
    """
    with _alone(vlm):
        edit_id = edit.edit_id
        if _entry(_state(vlm), edit, edit_id) is not None:
            raise EditError(
                f"{edit} is in force already. Withdraw it first, or leave it: mmneurons.edits.stack.active(vlm) lists "
                "those that are."
            )
        parts = _parts(vlm, edit)
        _check_banned(vlm, edit)
        _check_untouched(vlm, _state(vlm))
        if not force:
            _check_model(vlm, edit)
        state = _state(vlm)
        names = _names(vlm)
        written: dict[str, list[_Part]] = {}
        hooks: list[_Hook] = []
        for part in parts:
            weight = writable(vlm, part.site)
            if weight is None:
                hooks.append(_Hook(part.site.module, _Adding(part)))
            else:
                written.setdefault(names[id(weight)], []).append(part)
        entry = _Entry(edit, edit_id, {name: tuple(own) for name, own in written.items()}, tuple(hooks))
        entries = (*state.entries, entry)
        rewrites = _rewrites(vlm, state, entries, entry)
        for rewrite in rewrites:
            _check_finite(vlm, rewrite)
        with ExitStack() as undo:
            changed = _rewritten(vlm, state, rewrites, undo)
            for hook in hooks:
                undo.callback(hook.off)
                hook.on(vlm.model)
            changed = _banned(vlm, changed, entries, undo)
            _commit(vlm, replace(changed, entries=entries), undo)
            undo.pop_all()


def revert(vlm: VLM, edit: Edit) -> None:
    """Withdraw an edit. When it was the last one on a weight, its bits are what they were before the first.

    Args:
        vlm: the model.
        edit: the edit, or one that was loaded from its file.

    Raises:
        EditError: the edit is not in force, or an edited column was written to from outside. Nothing was changed.
    """
    with _alone(vlm):
        state = _state(vlm)
        entry = _entry(state, edit, edit.edit_id)
        if entry is None:
            raise EditError(
                f"{edit} is not in force, so it cannot be withdrawn: mmneurons.edits.stack.active(vlm) lists those "
                "that are."
            )
        _check_untouched(vlm, state)
        entries = tuple(other for other in state.entries if other is not entry)
        rewrites = _rewrites(vlm, state, entries, entry)
        with ExitStack() as undo:
            changed = _rewritten(vlm, state, rewrites, undo)
            for hook in entry.hooks:
                undo.callback(hook.on, vlm.model)
                hook.off()
            changed = _banned(vlm, changed, entries, undo)
            _commit(vlm, replace(changed, entries=entries), undo)
            undo.pop_all()


@contextmanager
def applied(vlm: VLM, edit: Edit, force: bool = False) -> Iterator[None]:
    """Have an edit in force while the block runs; however it is left, the edit is withdrawn.

    Arguments as in ``apply``.

    Raises:
        EditError: as in ``apply``; on leaving, when an edited column was written to from outside: the edit then stays
            in force, so that nothing is lost.
    """
    apply(vlm, edit, force)
    try:
        yield
    finally:
        if _entry(_state(vlm), edit, edit.edit_id) is not None:
            revert(vlm, edit)


def check_fits(vlm: VLM, edit: Edit, force: bool = False) -> None:
    """Refuse an edit that could not be put in force.

    Args:
        vlm: the model.
        edit: the edit.
        force: whether it may be of other weights.

    Raises:
        EditError: it does not fit the model's shape, or is of other weights.
    """
    with _alone(vlm):
        _parts(vlm, edit)
        _check_banned(vlm, edit)
        if not force:
            _check_model(vlm, edit)


def active(vlm: VLM) -> tuple[Edit, ...]:
    """The edits in force, in the order in which they were applied."""
    return tuple(entry.edit for entry in _state(vlm).entries)


def shared(vlm: VLM, edit: Edit) -> tuple[tuple[int, int], ...]:
    """Block and column of every neuron that an edit and other edits in force both change."""
    state = _state(vlm)
    own = _entry(state, edit, edit.edit_id)
    others = {neuron for entry in state.entries if entry is not own for neuron in entry.edit.neurons}
    return tuple(neuron for neuron in edit.neurons if neuron in others)


def base_fingerprint(vlm: VLM) -> str:
    """The fingerprint of the weights as they are without any edit, whether or not edits are in force.

    It reads all weights once, and again only after some of them have changed. Weights that accelerate keeps elsewhere
    are read every time.

    Raises:
        EditError: an edited column was written to from outside, or the weights are stored in a way that has none.
    """
    with _alone(vlm):
        state = _state(vlm)
        _check_untouched(vlm, state)
        weights = _all_weights(vlm.model)
        if state.known is not None and state.known.holds(weights):
            return state.known.text
        try:
            text = fingerprint(_Unedited(vlm, state.held) if state.held else vlm.model)
        except NotImplementedError as error:
            raise EditError(
                f"The weights of {vlm.name!r} are stored in a way that has no fingerprint ({str(error)[:80]}…). "
                "Pass force=True to apply an edit without comparing it."
            ) from error
        # of the weights as they are now: reading them may have brought some here
        _STATES[vlm.model] = replace(state, known=_Known.of(text, _all_weights(vlm.model)))
        return text


@dataclass(frozen=True, eq=False)
class _Part:
    """What an edit adds to columns of one write site.

    Attributes:
        block: the site's block.
        site: the site.
        units: counted from the site's first, in ascending order.
        vectors: what each gets.
    """

    block: int
    site: WriteSite
    units: Int[Tensor, "units"]
    vectors: Float[Tensor, "units hidden"]


@dataclass(frozen=True, eq=False)
class _Held:
    """The edited columns of one weight.

    Attributes:
        block: the block of its site.
        site: its site.
        units: in ascending order.
        base: the columns without any edit.
        written: the columns as they were written last.
    """

    block: int
    site: WriteSite
    units: Int[Tensor, "units"]
    base: Float[Tensor, "units hidden"]
    written: Float[Tensor, "units hidden"]


@dataclass(frozen=True, eq=False)
class _Rewrite:
    """What becomes of columns of one weight.

    Attributes:
        name: the weight's.
        block: the block of its site.
        site: its site.
        units: in ascending order.
        before: the columns as they are.
        after: the columns as they are to be.
        base: the columns without any edit.
        edited: which of them some edit then changes.
    """

    name: str
    block: int
    site: WriteSite
    units: Int[Tensor, "units"]
    before: Float[Tensor, "units hidden"]
    after: Float[Tensor, "units hidden"]
    base: Float[Tensor, "units hidden"]
    edited: Bool[Tensor, "units"]


@dataclass(frozen=True, eq=False)
class _Entry:
    """An edit in force.

    Attributes:
        edit: the edit.
        edit_id: its id when it was applied.
        parts: what is in the weights, by the names of these.
        hooks: what is added to outputs.
    """

    edit: Edit
    edit_id: str
    parts: Mapping[str, tuple[_Part, ...]]
    hooks: tuple[_Hook, ...]


@dataclass(frozen=True, eq=False)
class _Bans:
    """Token sequences that generation must not say.

    Attributes:
        before: the setting without any edit, the very list.
        written: the setting as it was written last.
    """

    before: list[list[int]] | None
    written: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class _State:
    """What is in force in a model. Replaced as a whole, and never holds the model: that keeps it alive for good."""

    entries: tuple[_Entry, ...] = ()
    held: Mapping[str, _Held] = field(default_factory=dict)
    bans: _Bans | None = None
    known: _Known | None = None


_STATES: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def _state(vlm: VLM) -> _State:
    return _STATES.get(vlm.model) or _State()


def _entry(state: _State, edit: Edit, edit_id: str) -> _Entry | None:
    # an edit whose tensors were changed since is found, too
    return next((entry for entry in state.entries if entry.edit is edit or entry.edit_id == edit_id), None)


@contextmanager
def _alone(vlm: VLM) -> Iterator[None]:
    """No other thread listens to the model meanwhile, and nothing is recorded for derivatives."""
    with hooked(vlm.model, {}, {}), torch.inference_mode(False), torch.no_grad():
        yield


def _commit(vlm: VLM, state: _State, undo: ExitStack) -> None:
    undo.callback(_STATES.__setitem__, vlm.model, _state(vlm))
    _STATES[vlm.model] = state


# what fits


def _parts(vlm: VLM, edit: Edit) -> list[_Part]:
    """What an edit adds to each write site.

    Raises:
        EditError: it does not fit the model's shape, or holds numbers that are not finite.
    """
    parts = []
    blocks, hidden = vlm.anatomy.blocks, vlm.anatomy.hidden
    misfit = f"{edit} does not fit {vlm.name!r}, and force=True cannot change that: "
    for delta in edit.deltas:
        if not 0 <= delta.block < len(blocks):
            raise EditError(f"{misfit}there is no block {delta.block}, only blocks 0 to {len(blocks) - 1}.")
        width, columns = blocks[delta.block].width, delta.columns.long().cpu()
        if not 0 <= int(columns.min()) <= int(columns.max()) < width:
            raise EditError(f"{misfit}block {delta.block} has units 0 to {width - 1}; others were to be changed.")
        if delta.directions.shape[-1] != hidden:
            raise EditError(f"{misfit}its vectors have {delta.directions.shape[-1]} entries, the stream {hidden}.")
        if delta.weights.shape != (len(columns), len(delta.directions)):
            raise EditError(f"{misfit}its weights of block {delta.block} are not one for each column and direction.")
        vectors = delta.vectors.float().cpu()
        if not bool(vectors.isfinite().all()):
            raise EditError(f"{edit} holds numbers that are not finite, in block {delta.block}. Make it anew.")
        for site, own, units in split(blocks[delta.block], columns):
            weight = writable(vlm, site)
            if weight is not None and weight.shape != _shape(site, hidden):
                raise EditError(f"{misfit}the weight of {site.module} is no longer of the shape that was measured.")
            parts.append(_Part(delta.block, site, units, vectors[own]))
    return parts


def _shape(site: WriteSite, hidden: int) -> tuple[int, ...]:
    if site.experts is None:
        return (site.width, hidden) if site.transposed else (hidden, site.width)
    inner = (site.experts.width, hidden) if site.experts.transposed else (hidden, site.experts.width)
    return (site.experts.count, *inner)


def _check_model(vlm: VLM, edit: Edit) -> None:
    """Raise an EditError where an edit is of other weights."""
    own, wanted = base_fingerprint(vlm), edit.model.get("fingerprint")
    if own != wanted:
        raise EditError(
            f"{edit} is of {edit.model.get('name')!r}, with weights of the fingerprint {wanted}; those of {vlm.name!r} "
            f"have {own}. Load the model that the edit is of, or pass force=True to apply it all the same."
        )


def _check_finite(vlm: VLM, rewrite: _Rewrite) -> None:
    """Raise an EditError where a weight would become too large for its dtype."""
    lost = (rewrite.base.isfinite() & ~rewrite.after.isfinite()).any(1)
    if bool(lost.any()):
        unit = int(rewrite.units[lost][0])
        raise EditError(
            f"With this edit, weights of {_name(vlm, rewrite, unit)} would be too large for "
            f"{str(rewrite.after.dtype).removeprefix('torch.')}. Nothing was changed. Load the model in bfloat16 or "
            "float32, or make a smaller edit."
        )


def _check_untouched(vlm: VLM, state: _State) -> None:
    """Raise an EditError where what was edited is not as it was left."""
    for held in state.held.values():
        weight = writable(vlm, held.site)
        shape = _shape(held.site, held.base.shape[1])
        if weight is None or weight.shape != shape or weight.dtype != held.base.dtype:
            raise EditError(
                f"The weight of {held.site.module} has edited columns, and was converted, replaced or sent elsewhere "
                "since. Nothing was changed now. Put back the weight that was there, or load the model anew; withdraw "
                "edits before converting a model."
            )
        now = _read(weight, held.site, held.units)
        wrong = held.units[(bits(now) != bits(held.written)).any(1)].tolist()
        if wrong:
            more = f" and {len(wrong) - 1} more of its site" if len(wrong) > 1 else ""
            raise EditError(
                f"{_name(vlm, held, wrong[0])}{more}: written to from outside while edits are in force, so no edit can "
                "be put in or taken out. Nothing was changed now. Put back the weights that were there, or load the "
                "model anew; and find out what writes to them (training, another library)."
            )
    if state.bans is not None and _sequences(generator(vlm).generation_config) != state.bans.written:
        raise EditError(
            "bad_words_ids of the model's generation settings was changed from outside while an edit is in force that "
            f"bans words. Nothing was changed now. Put back {[list(one) for one in state.bans.written]}."
        )


def _name(vlm: VLM, place: _Held | _Rewrite, unit: int) -> str:
    return vlm.anatomy.name(place.block, place.site.start + unit)


# the weights


def _names(vlm: VLM) -> dict[int, str]:
    """One name for each weight, by its identity: blocks may share one."""
    names: dict[int, str] = {}
    for block in vlm.anatomy.blocks:
        for site in block.sites:
            names.setdefault(id(writable(vlm, site)), f"{site.module}.{site.parameter}")
    return names


def _rewrites(vlm: VLM, state: _State, entries: Sequence[_Entry], changing: _Entry) -> list[_Rewrite]:
    """What becomes of the weights that an edit changes once ``entries`` are in force."""
    ordered = sorted(entries, key=lambda entry: entry.edit_id)
    rewrites = []
    for name, own in changing.parts.items():
        held, site = state.held.get(name), own[0].site
        seen = [part.units for part in own]
        units = torch.cat(seen if held is None else [*seen, held.units]).unique()
        weight = writable(vlm, site)
        assert weight is not None
        before = _read(weight, site, units)
        base = before.clone()
        if held is not None:
            base[torch.searchsorted(units, held.units)] = held.base
        total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
        edited = torch.zeros(len(units), dtype=torch.bool)
        for entry in ordered:
            for part in entry.parts.get(name, ()):
                rows = torch.searchsorted(units, part.units)
                total[rows] += part.vectors
                edited[rows] = True
        after = base.clone()
        after[edited] = total[edited].to(base.dtype)
        rewrites.append(_Rewrite(name, own[0].block, site, units, before, after, base, edited))
    return rewrites


def _rewritten(vlm: VLM, state: _State, rewrites: Sequence[_Rewrite], undo: ExitStack) -> _State:
    """Write to the weights, and return the state that says so."""
    held, known = dict(state.held), state.known
    for rewrite in rewrites:
        weight = writable(vlm, rewrite.site)
        assert weight is not None
        unchanged = () if known is None else known.names(weight)
        undo.callback(_write, weight, rewrite.site, rewrite.units, rewrite.before)
        _write(weight, rewrite.site, rewrite.units, rewrite.after)
        if known is not None:
            known = known.renewed(unchanged, weight)
        held.pop(rewrite.name, None)
        if bool(rewrite.edited.any()):
            own = rewrite.edited
            kept = _Held(rewrite.block, rewrite.site, rewrite.units[own], rewrite.base[own], rewrite.after[own])
            held[rewrite.name] = kept
    return replace(state, held=held, known=known)


def _places(site: WriteSite, units: Int[Tensor, "units"]) -> tuple[Tensor | slice, ...]:
    """Where columns lie in a site's weight."""
    if site.experts is None:
        return (units,) if site.transposed else (slice(None), units)
    expert, unit = units // site.experts.width, units % site.experts.width
    return (expert, unit) if site.experts.transposed else (expert, slice(None), unit)


def _read(weight: Tensor, site: WriteSite, units: Int[Tensor, "units"]) -> Float[Tensor, "units hidden"]:
    """Columns, on the CPU."""
    found = bits(weight)[_places(site, units.to(weight.device))]
    if site.experts is None and not site.transposed:
        found = found.T
    return found.cpu().contiguous().view(weight.dtype)


def _write(weight: Tensor, site: WriteSite, units: Int[Tensor, "units"], values: Float[Tensor, "units hidden"]) -> None:
    given = bits(values).to(weight.device)
    if site.experts is None and not site.transposed:
        given = given.T
    # a view shares the weight's counter of changes, so whoever keeps something of it sees that it changed
    bits(weight)[_places(site, units.to(weight.device))] = given


# outputs


class _Adding:
    """A hook that adds an edit to what a write site gives."""

    def __init__(self, part: _Part) -> None:
        self._site, self._units, self._vectors = part.site, part.units, part.vectors

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        if self._site.experts is None:
            return output + self._written(given[0]).to(output)
        with fetched(module):
            return self._mixture(module, given, output)

    def _written(self, z: Tensor) -> Tensor:
        if self._vectors.device != z.device:
            # a tensor made in inference mode could not be used in derivatives afterwards
            with torch.inference_mode(False), torch.no_grad():
                self._units, self._vectors = self._units.to(z.device), self._vectors.to(z.device)
        own = z[..., self._units]
        kind = torch.promote_types(own.dtype, torch.float32)
        return own.to(kind) @ self._vectors.to(kind)

    def _mixture(self, module: nn.Module, given: Sequence[Tensor], output: Tensor) -> Tensor:
        experts = self._site.experts
        assert experts is not None
        device = next(weight.device for weight in module.parameters(recurse=False))
        given = [one.to(device) for one in given]
        made = output.clone()
        # one row of several for every token is enough to add to
        rows = made.view(experts.count, -1, made.shape[-1])[0] if experts.layout == "sorted" else made
        rows = rows.view(-1, made.shape[-1])
        for at in torch.arange(len(rows)).split(_CHUNK):
            z = heard_activations(module, self._site, given, at.to(device))
            rows[at.to(rows.device)] += self._written(z).to(rows)
        return made


class _Hook:
    """A hook of an edit, which can be put on and taken off."""

    def __init__(self, module: str, adding: Callable[..., Tensor]) -> None:
        self._module, self._adding = module, adding
        self._handle: RemovableHandle | None = None

    def on(self, model: nn.Module) -> None:
        if self._handle is None:
            module = model.get_submodule(self._module)
            # first, so that whoever listens hears what the edited site gives
            self._handle = module.register_forward_hook(self._adding, with_kwargs=True, prepend=True)

    def off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


# banned words


def _check_banned(vlm: VLM, edit: Edit) -> None:
    """Raise an EditError where words cannot be banned as an edit says."""
    if not edit.banned:
        return
    if getattr(generator(vlm), "generation_config", None) is None:
        raise EditError(f"{edit} bans words, and {type(generator(vlm)).__name__} has no settings of generation.")
    if any(not sequence or min(sequence) < 0 for sequence in edit.banned):
        raise EditError(f"{edit} bans a sequence of no tokens, or a token below 0.")
    config = generator(vlm).config.get_text_config(decoder=True)
    count = getattr(config, "vocab_size", None)
    if isinstance(count, int) and max(map(max, edit.banned)) >= count + getattr(config, "additional_vocab_size", 0):
        raise EditError(f"{edit} bans a token that {vlm.name!r} does not have: it is of a model with other tokens.")


def _sequences(settings: object) -> tuple[tuple[int, ...], ...]:
    found: Sequence[Sequence[int]] | None = getattr(settings, "bad_words_ids", None)
    return tuple(tuple(sequence) for sequence in found or ())


def _banned(vlm: VLM, state: _State, entries: Sequence[_Entry], undo: ExitStack) -> _State:
    """Set what generation must not say, and return the state that says so."""
    ordered = sorted(entries, key=lambda entry: entry.edit_id)
    banned = [list(sequence) for entry in ordered for sequence in entry.edit.banned]
    if not banned and state.bans is None:
        return state
    settings = generator(vlm).generation_config
    assert settings is not None
    now = settings.bad_words_ids
    before = now if state.bans is None else state.bans.before
    undo.callback(setattr, settings, "bad_words_ids", now)
    if not banned:
        settings.bad_words_ids = before
        return replace(state, bans=None)
    settings.bad_words_ids = [*(before or ()), *banned]
    return replace(state, bans=_Bans(before, _sequences(settings)))


# fingerprints


def _all_weights(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(chain(parameters, model.named_buffers(remove_duplicate=False)))


def _marks(weights: Iterable[Tensor]) -> list[tuple[int, int, bytes] | None]:
    """By what weights are known to be unchanged, without reading all of them.

    These are torch's counter of what was written, the place of the numbers and some of the numbers. None where a change
    could go unseen: the numbers are elsewhere, not counted, or cannot be looked at.
    """
    marks = []
    for weight in weights:
        try:
            # odd, or it would be the same column of every row
            step = weight.numel() // _SAMPLE | 1
            chosen = torch.arange(0, weight.numel(), step, device=weight.device)
            sample = torch.take(bits(weight), chosen).cpu().numpy().tobytes()
            marks.append((weight._version, weight.data_ptr(), sample))
        except (KeyError, NotImplementedError, RuntimeError, TypeError):
            marks.append(None)
    return marks


@dataclass(frozen=True, eq=False)
class _Known:
    """A fingerprint, and what it holds for.

    Attributes:
        text: the fingerprint, of the weights without any edit.
        weights: the very tensors that the model had, by name.
        marks: by what they are known again, with the edits in force.
    """

    text: str
    weights: Mapping[str, ref[Tensor]]
    marks: Mapping[str, tuple[int, int, bytes]]

    @classmethod
    def of(cls, text: str, weights: Mapping[str, Tensor]) -> _Known | None:
        """None where a change could go unseen."""
        marks = {name: mark for name, mark in zip(weights, _marks(weights.values())) if mark is not None}
        refs = {name: ref(weight) for name, weight in weights.items()}
        return cls(text, refs, marks) if len(marks) == len(refs) else None

    def holds(self, weights: Mapping[str, Tensor]) -> bool:
        same = self.weights.keys() == weights.keys() and all(
            self.weights[name]() is weight for name, weight in weights.items()
        )
        return same and _marks(weights.values()) == [self.marks[name] for name in weights]

    def names(self, weight: Tensor) -> tuple[str, ...]:
        """The names of a weight, as long as it is as it was."""
        (mark,) = _marks([weight])
        return tuple(name for name, own in self.weights.items() if own() is weight and self.marks[name] == mark)

    def renewed(self, names: Sequence[str], weight: Tensor) -> _Known:
        """The same after we wrote to a weight ourselves."""
        (mark,) = _marks([weight])
        return self if mark is None else replace(self, marks={**self.marks, **dict.fromkeys(names, mark)})


class _Unedited(nn.Module):
    """A model as it would be without edits, as far as its fingerprint goes."""

    def __init__(self, vlm: VLM, held: Mapping[str, _Held]) -> None:
        super().__init__()
        self._model, self._base = vlm.model, dict[int, Tensor]()
        for own in held.values():
            weight = writable(vlm, own.site)
            assert weight is not None
            base = weight.detach().clone()
            _write(base, own.site, own.units, own.base)
            self._base[id(weight)] = base

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """What the fingerprint is taken of."""
        edited: dict[str, Tensor] = self._model.state_dict(keep_vars=True)
        return {name: self._base.get(id(weight), weight) for name, weight in edited.items()}

    def get_submodule(self, target: str) -> nn.Module:
        """Where a weight that is elsewhere is fetched from."""
        return self._model.get_submodule(target)
