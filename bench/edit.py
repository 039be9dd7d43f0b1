"""What an edit costs: made on one picture, and a step of learning with and without what lies below it.

A step runs forward and backward over captions of bundled pictures. It is compared with a loop that runs the whole
language model, with the picture's features kept and the head at the same positions. What counting says: with n blocks,
an edit in block b, and all that is outside the blocks (masks, final norm, head) costing as much as h of them, the whole
loop runs n blocks forward and n − b − 1 back, at twice the cost; the upper part alone runs n − b − 1 of them forward.
Block b's own write site is in neither count.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import mmneurons as mmn
from bench.timing import REPEATS, device, seconds
from mmneurons.vlm.hooks import hooked
from mmneurons.vlm.pictures import PictureLike
from mmneurons.vlm.upper import Added, Said, Upper, upper

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "edit.md"


def step(above: Upper, added: Added, to: Sequence[Tensor]) -> Callable[[], None]:
    """A forward and a backward pass, to what is learned or to something else."""

    def run() -> None:
        torch.autograd.grad(above.logits([added]).log_softmax(-1)[:, 0].sum(), to)

    return run


def whole(above: Upper) -> Upper:
    """The same with nothing kept but the picture's features and the embeddings."""
    blocks = above.vlm.anatomy.decoder
    parts = tuple(
        replace(part, answers={name: own for name, own in part.answers.items() if not name.startswith(blocks)})
        for part in above.parts
    )
    return replace(above, parts=parts)


def outside(above: Upper) -> tuple[Upper, list[Tensor]]:
    """The same with what the last block gave kept, so that no block runs; and that."""
    last = above.vlm.anatomy.blocks[-1].module
    gave: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> None:
        assert isinstance(output, Tensor)
        gave.append(output.requires_grad_())

    with hooked(above.vlm.model, {}, {last: keep}):
        above.logits()
    parts = (replace(part, answers={**part.answers, last: [own]}) for part, own in zip(above.parts, gave, strict=True))
    return replace(above, parts=tuple(parts)), gave


def main() -> None:
    """Measure, print and write ``bench/results/edit.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--blocks", type=int, nargs="*", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    vlm = mmn.load(options.model)
    count = len(vlm.anatomy.blocks)
    pictures: list[PictureLike] = [picture.path for picture in mmn.demo.pictures()]
    recordings = mmn.record(vlm, pictures[: options.captions], image_budget=0)
    place = next(k for k, one in enumerate(mmn.caption(vlm, pictures)) if "dog" in one)
    began = time.perf_counter()
    made = mmn.edit(vlm, mmn.find(vlm, pictures[place])["dog"], "cat")
    once = time.perf_counter() - began
    said = [Said(one.request, tuple(one.token_ids.tolist()), tuple(range(len(one)))) for one in recordings]
    rest, gave = outside(upper(vlm, said, count - 1))
    lines = [
        "| lowest edited block | whole loop, s | upper part, s | faster | counted | of what is counted |",
        "|---|---|---|---|---|---|",
    ]
    for block in options.blocks or [*(count * part // 10 for part in (3, 5, 7, 8, 9)), count - 1]:
        above = upper(vlm, said, block)
        vectors = torch.zeros(20, vlm.anatomy.hidden, device=vlm.device, requires_grad=True)
        added = Added(block, torch.arange(20), vectors)
        slow, fast = (seconds(step(one, added, [vectors])) for one in (whole(above), above))
        around, ahead = seconds(step(rest, added, gave)), seconds(rest.logits)
        unit = (seconds(whole(above).logits) - ahead) / count
        left = count - block - 1
        counted = (count + 2 * left + around / unit) / (3 * left + around / unit)
        lines.append(
            f"| {block} of {count} | {slow:.3f} | {fast:.3f} | {slow / fast:.2f} | {counted:.2f} | "
            f"{slow / fast / counted:.0%} |"
        )
    text = (
        "# What an edit costs\n\n"
        f'{vlm.name}, {device()}, {str(vlm.dtype)[6:]}. "dog" → "cat" from one bundled picture, the keep set\'s '
        f"captions made and the edit learned in closed form: {once:.1f} s ({made}).\n\n"
        f"A step of learning over {options.captions} captions, medians of {REPEATS}: the whole language model with the "
        "picture's features kept, and what lies above the lowest edited write site alone; the head at the same "
        "positions in both.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
