"""An anatomy is believed only after a forward has shown it.

One short forward does it, with the decoder cut into pieces (``tracing``). The derivative of the stream before the final
norm by what a module gave is then the path of that write, followed all the way. It is compared with the path that the
anatomy states, and the constants that are missing are read off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Anatomy, Block, Gate, Head, Norm, Path, Write, WriteSite
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import Carried, carry_back, shift_of, statistic_of
from mmneurons.vlm.readout import readout
from mmneurons.vlm.sites import bias, dtype, expert_activations, expert_outputs, plain, weight
from mmneurons.vlm.tracing import ENTRY, TOKENS, Trace, close, known_norm, run_cut, sample_text
from mmneurons.vlm.weights import asked_columns

__all__ = ["measure"]


def measure(vlm: VLM, inputs: Mapping[str, Tensor] | None = None) -> Anatomy:
    """Measure the anatomy of a model on a short forward and return it with the paths that were seen.

    Shown on the way: every write site runs once, and is the linear map that it is taken for; what it and every other
    write adds arrives at the final norm through the norms, gates and constants of its path and nothing else; the stream
    before the final norm is what entered block 0 and these writes, and nothing else; the frozen norm and the head give
    the logits.

    Args:
        vlm: the model with its anatomy as it was found or stated.
        inputs: a batch of one to run it on; by default a few tokens of text.

    Raises:
        AnatomyError: something else was seen.
    """
    trace = run_cut(vlm, sample_text(vlm) if inputs is None else dict(inputs))
    _check_write_sites(vlm, trace)
    anatomy = _paths(vlm, trace)
    _check_sum(vlm, anatomy, trace)
    return replace(anatomy, head=_measure_head(replace(vlm, anatomy=anatomy), trace))


def _check_write_sites(vlm: VLM, trace: Trace) -> None:
    for block in vlm.anatomy.blocks:
        for site in block.sites:
            given, gave = _activations(vlm, trace, site), _rows(site, trace.sources[site.module])
            if not plain(vlm.model, site):
                _check_asked(vlm, site, given, gave)
                continue
            own = weight(vlm.model, site)
            if own.shape != (vlm.anatomy.hidden, site.width):
                raise AnatomyError(
                    f"The weight of {site.module} is {own.dtype} of shape {tuple(own.shape)}, not a "
                    f"{vlm.anatomy.hidden} × {site.width} matrix."
                )
            own, shift = own.float().cpu(), bias(vlm.model, site)
            expected = given @ own.T + (0 if shift is None else shift)
            size = given.abs() @ own.T.abs()
            if not close(gave, expected, size, vlm.rounding):
                raise AnatomyError(f"{site.module} is not the linear map that its weight and bias state.")


def _check_asked(vlm: VLM, site: WriteSite, given: Tensor, gave: Tensor) -> None:
    """See that what a quantised map gives is the sum of its columns, as they are asked for, times what it is given."""
    if site.experts is not None:
        raise AnatomyError(f"The experts of {site.module} are quantised, which is not supported.")
    module, kind = vlm.model.get_submodule(site.module), dtype(vlm.model, site)
    largest = given.abs().amax(0).topk(min(64, site.width)).indices
    kept = torch.zeros_like(given)
    kept[:, largest] = given[:, largest]
    with torch.no_grad():
        both = module(torch.stack([kept, torch.zeros_like(kept)]).to(vlm.device, kind)).float().cpu()
    columns = asked_columns(module, site.width, largest.tolist(), kind)
    seen, expected = both[0] - both[1], kept[:, largest] @ columns
    if not float((seen - expected).norm()) <= 0.05 * float(seen.norm()) or gave.shape[-1] != vlm.anatomy.hidden:
        raise AnatomyError(
            f"{site.module} ({type(module).__name__}) is not linear to the precision that its quantisation leaves, so "
            "the columns of its neurons cannot be read. Load the model without quantisation."
        )


def _activations(vlm: VLM, trace: Trace, site: WriteSite) -> Float[Tensor, "positions width"]:
    """What a site was given at the last positions."""
    given = trace.given[site.module]
    if site.experts is None:
        return given[0].reshape(-1, given[0].shape[-1])[-TOKENS:].float().cpu()
    length = _length(site, trace.sources[site.module])
    positions = torch.arange(max(0, length - TOKENS), length, device=given[0].device)
    return expert_activations(vlm.model.get_submodule(site.module), site, given, positions).float().cpu()


def _length(site: WriteSite, output: Tensor) -> int:
    return expert_outputs(site, output.detach(), 1).shape[1]


def _rows(site: WriteSite | None, value: Tensor, total: bool = True) -> Float[Tensor, "positions hidden"]:
    """The last positions of what a module gave, or of a derivative by it, of which experts share one (``total``)."""
    value = value.detach()
    if site is not None and site.experts is not None and site.experts.layout == "sorted":
        value = value.view(site.experts.count, -1, value.shape[-1])
        value = value.sum(0) if total else value[0]
    return value.reshape(-1, value.shape[-1])[-TOKENS:].float().cpu()


def _paths(vlm: VLM, trace: Trace) -> Anatomy:
    """The anatomy with the path of every write, as the derivatives show it."""
    anatomy, stream = vlm.anatomy, trace.stream
    assert stream is not None
    sites = {site.module: site for block in anatomy.blocks for site in block.sites}
    normed = [name for name in trace.normed if trace.normed[name][1].requires_grad]
    cotangent = torch.randn(stream.shape, generator=torch.Generator().manual_seed(0)).to(stream)
    cotangent.view(-1, stream.shape[-1])[:-TOKENS] = 0
    wanted = [*trace.sources.values(), *(trace.normed[name][1] for name in normed)]
    found = dict(zip([*trace.sources, *normed], _derivatives(stream, wanted, cotangent), strict=True))
    live = {name: own for name, own in found.items() if own is not None and bool(own.any())}
    if ENTRY not in live:
        raise AnatomyError(f"What enters block 0 of {type(vlm.model).__name__} does not arrive at {anatomy.end}.")
    if dead := [name for name in sites if name not in live]:
        raise AnatomyError(f"What {dead[0]} writes does not arrive at {anatomy.end}.")
    if repeated := [name for name in live if trace.calls[name] > 1]:
        raise AnatomyError(f"A short forward ran {repeated[0]} more than once, and it writes into the stream.")
    kinds = {name: known_norm(vlm.model.get_submodule(name), name) for name in normed if name in live}
    norms = {name: kind for name, kind in kinds.items() if kind is not None}
    reached = _reached(trace, norms, [name for name in trace.sources if name in live])
    carriers = [name for name in norms if ENTRY in reached[name]]
    width = anatomy.hidden
    writes = [name for name in trace.order if name in live and name in trace.sources and name != ENTRY]
    narrow = [name for name in writes if trace.sources[name].shape[-1] != width]
    statistics = {name: statistic_of(norm, _rows(None, trace.normed[name][0])) for name, norm in norms.items()}
    order = [*carriers, *(name for name in norms if name not in carriers)]
    plain = replace(
        anatomy,
        carriers=tuple(norms[name] for name in carriers),
        blocks=tuple(replace(block, writes=()) for block in anatomy.blocks),
    )
    paths: dict[str, Path] = {}
    for name in (ENTRY, *(name for name in writes if name not in narrow)):
        side = tuple(norms[norm] for norm in norms if norm not in carriers and name in reached[norm])
        behind = [norm for norm in carriers if name in reached[norm]]
        if behind != carriers[len(carriers) - len(behind) :]:
            raise AnatomyError(
                f"What {name} writes goes through {', '.join(behind)}, but not to the end of the stream."
            )
        paths[name] = Path(norms=side, carriers=len(carriers) - len(behind))
    outline = _assembled(plain, trace, writes, narrow, paths)
    table = torch.stack([statistics[norm.module] for norm in outline.norms], 1) if outline.norms else _none(stream)
    carried = carry_back(vlm.model, outline, _rows(None, cotangent).double(), table, _none(stream))
    tolerance = 1e-4 + 8 * torch.finfo(vlm.dtype).eps
    for name, path in paths.items():
        seen = _rows(sites.get(name), live[name], total=False).double()
        gains = _ratio(name, seen, carried.at(path), tolerance)
        paths[name] = _with_gain(vlm, trace, name, path, gains, narrow, tolerance)
    used = {path.gate.module for path in paths.values() if path.gate is not None}
    if unknown := [name for name in narrow if name not in used]:
        raise AnatomyError(f"{unknown[0]} has a say in the stream, but writes no vector into it; it is not supported.")
    return _with_gains(_assembled(plain, trace, writes, narrow, paths), live, carried, outline, order, tolerance, vlm)


def _derivatives(of: Tensor, by: Sequence[Tensor], along: Tensor) -> Sequence[Tensor | None]:
    return torch.autograd.grad(of, list(by), along, retain_graph=True, allow_unused=True)


def _reached(trace: Trace, norms: Mapping[str, Norm], sources: Sequence[str]) -> dict[str, set[str]]:
    """For every norm on the way, which sources go through it."""
    leaves = [trace.sources[name] for name in sources]
    reached = {}
    for name in norms:
        given = trace.normed[name][1]
        found = _derivatives(given, leaves, torch.ones_like(given))
        reached[name] = {source for source, own in zip(sources, found, strict=True) if own is not None}
    return reached


def _assembled(
    anatomy: Anatomy, trace: Trace, writes: Sequence[str], narrow: Sequence[str], paths: Mapping[str, Path]
) -> Anatomy:
    """The anatomy with these paths; a write outside of the blocks belongs to the block that runs after it."""
    sites = {site.module for block in anatomy.blocks for site in block.sites}
    blocks, waiting = list(anatomy.blocks), [name for name in writes if name not in narrow and name not in sites]
    first = {index: _firstrun_cut(trace, block) for index, block in enumerate(blocks)}
    grouped: dict[int, list[Write]] = {index: [] for index in range(len(blocks))}
    for name in waiting:
        own = next((index for index, block in enumerate(blocks) if name.startswith(f"{block.module}.")), None)
        when = trace.order.index(name)
        later = next((index for index in first if first[index] > when), len(blocks) - 1)
        grouped[later if own is None else own].append(Write(name, paths[name]))
    made = tuple(
        replace(
            block,
            writes=tuple(grouped[index]),
            sites=tuple(replace(site, path=paths[site.module]) for site in block.sites),
        )
        for index, block in enumerate(blocks)
    )
    return replace(anatomy, blocks=made, entry=paths[ENTRY])


def _firstrun_cut(trace: Trace, block: Block) -> int:
    return next(index for index, name in enumerate(trace.order) if name.startswith(f"{block.module}."))


def _with_gains(
    anatomy: Anatomy,
    live: Mapping[str, Tensor],
    carried: Carried,
    outline: Anatomy,
    order: Sequence[str],
    tolerance: float,
    vlm: VLM,
) -> Anatomy:
    """The anatomy with the constants behind every norm, which what the norms add is multiplied by."""
    gains: dict[str, float] = {}
    for index, norm in enumerate(outline.carriers):
        ratio = _ratio(norm.module, _rows(None, live[norm.module]).double(), carried.behind[index + 1], tolerance)
        gains[norm.module] = _snapped(float(ratio.mean()), vlm.dtype)
    for path in outline.paths:
        for index, norm in enumerate(path.norms):
            here = carried.at(replace(path, norms=path.norms[index + 1 :], gate=None, gain=1.0))
            ratio = _ratio(norm.module, _rows(None, live[norm.module]).double(), here, tolerance)
            if not _constant(ratio, tolerance) and shift_of(vlm.model, norm) is not None:
                raise AnatomyError(f"What {norm.module} adds goes through a gate, which is not supported.")
            gains[norm.module] = _snapped(float(ratio.mean()), vlm.dtype)

    def gained(norm: Norm) -> Norm:
        return replace(norm, gain=gains[norm.module])

    def path_of(path: Path) -> Path:
        return replace(path, norms=tuple(gained(norm) for norm in path.norms))

    blocks = tuple(
        replace(
            block,
            sites=tuple(replace(site, path=path_of(site.path)) for site in block.sites),
            writes=tuple(replace(write, path=path_of(write.path)) for write in block.writes),
        )
        for block in anatomy.blocks
    )
    return replace(anatomy, blocks=blocks, carriers=tuple(gained(norm) for norm in anatomy.carriers))


def _ratio(name: str, seen: Tensor, expected: Tensor, tolerance: float) -> Float[Tensor, "positions"]:
    """What a derivative is times what its path would give, for every position; it has to be a multiple of it."""
    ratio = (seen * expected).sum(-1) / expected.square().sum(-1)
    off = float((seen - ratio[:, None] * expected).norm() / seen.norm().clamp_min(1e-30))
    if not off <= tolerance:
        raise AnatomyError(
            f"What {name} writes does not arrive at the final norm times a constant ({off:.1%} of it is off): "
            "something on the way changes it that is no norm, constant or gate that is known. Such models are not "
            "supported."
        )
    return ratio


def _constant(ratio: Tensor, tolerance: float) -> bool:
    return _spread(ratio) <= tolerance


def _snapped(gain: float, kind: torch.dtype) -> float:
    return 1.0 if abs(gain - 1) < 4 * torch.finfo(kind).eps + 1e-6 else gain


def _with_gain(
    vlm: VLM, trace: Trace, name: str, path: Path, gains: Tensor, narrow: Sequence[str], tolerance: float
) -> Path:
    """The path with its constant; and with a gate, where that explains better how it differs between positions."""
    best, gate, spread = gains, None, _spread(gains)
    for other in narrow:
        value = _rows(None, trace.sources[other])
        if value.shape[-1] == 1 and other.rpartition(".")[0] == _shared_part(other, name):
            ratio = gains / torch.sigmoid(value[:, 0].double())
            if _spread(ratio) < spread:
                best, gate, spread = ratio, Gate(other), _spread(ratio)
    if not spread <= (tolerance if gate is None else 10 * tolerance):
        raise AnatomyError(
            f"What {name} writes is multiplied by something that differs from position to position "
            f"({', '.join(f'{gain:.3g}' for gain in gains.tolist())}), and that is no gate that is known."
        )
    return replace(path, gain=_snapped(float(best.mean()), vlm.dtype), gate=gate)


def _shared_part(gate: str, write: str) -> str:
    """The beginning that a gate's name shares with a write's, up to the part that both belong to."""
    parts = zip(gate.split("."), write.split("."))
    shared = []
    for one, other in parts:
        if one != other:
            break
        shared.append(one)
    return ".".join(shared)


def _spread(ratio: Tensor) -> float:
    """How far the constants of positions are apart, over the largest."""
    return float((ratio - ratio.mean()).abs().max() / ratio.abs().max().clamp_min(1e-30))


def _none(like: Tensor) -> Float[Tensor, "positions 0"]:
    return torch.zeros(min(TOKENS, like.numel() // like.shape[-1]), 0, dtype=torch.double)


def _check_sum(vlm: VLM, anatomy: Anatomy, trace: Trace) -> None:
    assert trace.stream is not None
    stream = _rows(None, trace.stream).double()
    directions = torch.randn(stream.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    statistics = [statistic_of(norm, _rows(None, trace.normed[norm.module][0])) for norm in anatomy.norms]
    factors = [torch.sigmoid(_rows(None, trace.sources[gate.module])[:, 0].double()) for gate in anatomy.gates]
    carried = carry_back(
        vlm.model,
        anatomy,
        directions,
        torch.stack(statistics, 1) if statistics else _none(stream),
        torch.stack(factors, 1) if factors else _none(stream),
    )
    sites = {site.module: site for block in anatomy.blocks for site in block.sites}
    parts = [(_rows(None, trace.sources[ENTRY]).double() * carried.at(anatomy.entry)).sum(-1), carried.constants()]
    for block in anatomy.blocks:
        for part in (*block.writes, *block.sites):
            value = _rows(sites.get(part.module), trace.sources[part.module]).double()
            parts.append((value * carried.at(part.path)).sum(-1))
    total, expected = torch.stack(parts).sum(0), (directions * stream).sum(-1)
    # the product of two random vectors, so its size is that of the two
    size = torch.stack(parts).abs().sum(0) + directions.norm(dim=-1) * stream.norm(dim=-1)
    if not close(total, expected, size, vlm.rounding):
        off = float((total - expected).norm() / (directions.norm(dim=-1) * stream.norm(dim=-1)).norm())
        raise AnatomyError(
            f"The stream before the final norm is not the sum of what was recorded ({off:.1%} is missing): the model "
            "writes into its stream by a way that is not supported yet."
        )


def _measure_head(vlm: VLM, trace: Trace) -> Head:
    head = vlm.anatomy.head
    assert trace.stream is not None
    assert trace.logits is not None
    plain = replace(readout(vlm), scale=1.0, softcap=None)
    stream = _rows(None, trace.stream)
    if vlm.anatomy.norm is not None and trace.ended is not None:
        normed, seen = plain.normalize(stream), _rows(None, trace.ended)
        if not close(seen, normed, normed.abs() + normed.abs().mean(), vlm.rounding):
            raise AnatomyError(f"{vlm.anatomy.norm.module} does not norm as its weight and epsilon say.")
    logits = trace.logits.reshape(-1, trace.logits.shape[-1])[-len(stream) :].double().cpu()
    raw = plain.logits(stream)[-len(logits) :].double()
    # a model that never says some tokens gives them the lowest number there is
    said = logits[-1] > torch.finfo(trace.logits.dtype).min / 2
    raw, logits = raw[:, said], logits[:, said]
    size = raw.abs() + raw.abs().mean()
    for softcap in dict.fromkeys([None, head.softcap]):
        uncapped = logits if softcap is None else softcap * torch.atanh((logits / softcap).clamp(-1 + 1e-12, 1 - 1e-12))
        scale = float((uncapped * raw).sum() / raw.square().sum())
        scale = 1.0 if abs(scale - 1) < 4 * torch.finfo(vlm.dtype).eps else scale
        expected = scale * raw if softcap is None else softcap * torch.tanh(scale * raw / softcap)
        if close(logits, expected, scale * size, vlm.rounding):
            return replace(head, scale=scale, softcap=softcap)
    raise AnatomyError(
        f"{head.module} after {vlm.anatomy.end if vlm.anatomy.norm else 'the stream'} does not give the model's logits."
    )
