"""Trains what the demo model adds to its pre-trained parts.

`python -m zoo.train STAGE --work DIR`. Both stages write a checkpoint every four minutes and resume from their last:
  dense     vision tower and connector, no language model: every cell that shows a thing must come out near the
            language model's own embedding of its name, every other cell near one learned "nothing here" vector;
  captions  the caption's cross-entropy through the language model, whose attention gets low-rank factors;
            the dense loss stays as a side task.
  export    writes the running mean of the last checkpoint as the package's weights.safetensors.
`captions --from-shipped` starts from the package's file instead.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mmneurons.demo.assembly import WEIGHTS
from zoo.data import Batch, batches, collate
from zoo.model import CaptionModel, Ema, Trained, language_parts, name_targets, read_shipped, shipped_tensors
from zoo.scenes import Vocabulary, describe, make_scene, vocabularies
from zoo.score import Lexicon, Tally, read_aliases

__all__ = ["Run", "export", "main", "train_captions", "train_dense"]

SAVE_SECONDS = 240
CHECK_STRENGTH = 0.4


class Run:
    """A training that ends after a given time, saves itself, and goes on where it was stopped.

    Args:
        name: Of the stage, and of its checkpoint.
        args: The command line.
        trained: What is trained.
        groups: The optimizer's groups with their highest learning rates.
        decay: Of the running mean.
        warmup: Steps until the highest rate; from there it falls as a cosine of the time spent.
    """

    def __init__(
        self, name: str, args: argparse.Namespace, trained: Trained, groups: list[dict], decay: float, warmup: int
    ) -> None:
        self.name, self.trained, self.warmup = name, trained, warmup
        self.path, self.seconds = args.work / f"{name}.pt", args.minutes * 60
        self.check_seconds = args.check_minutes * 60
        self.optimizer = torch.optim.AdamW(groups)
        self.peaks = [group["lr"] for group in groups]
        self.step, spent = 0, 0.0
        self.ema = Ema(trained, decay)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            trained.load_state_dict(state["modules"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.mean, self.ema.steps = state["ema"], state["step"]
            self.step, spent = state["step"], state["spent"]
        self.began = time.time() - spent

    def save(self) -> None:
        """Writes the checkpoint, never half of one."""
        state = {
            "modules": self.trained.own_state(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.mean,
            "spent": time.time() - self.began,
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)

    def checked(self, check: Callable[[], str]) -> None:
        """Prints what `check` says about the running mean."""
        current = {n: p.detach().clone() for n, p in self.trained.named_parameters() if n in self.ema.mean}
        self.trained.load_state_dict(self.ema.mean, strict=False)
        print(f"{self.name} {self.step} {check()}", flush=True)
        self.trained.load_state_dict(current, strict=False)

    def go(
        self, losses: Callable[[Batch], list[torch.Tensor]], supply: Callable[[], Batch], check: Callable[[], str]
    ) -> None:
        """Trains until the time is over.

        Args:
            losses: Terms of the loss of a batch; their sum is minimized.
            supply: The next batch.
            check: Says how good the model is.
        """
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        saved = looked = time.time()
        means = None
        while True:
            done = min((time.time() - self.began) / self.seconds, 1.0)
            factor = min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * done))
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            terms = torch.stack(losses(supply()))
            self.optimizer.zero_grad(set_to_none=True)
            terms.sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.ema.update(self.trained)
            self.step += 1
            means = terms.detach() if means is None else means.lerp(terms.detach(), 0.03)
            if self.step % 20 == 0:
                shown = " ".join(f"{mean:.3f}" for mean in means)
                print(f"{self.name} {self.step} {time.time() - self.began:.0f} s loss {shown}", flush=True)
            if done == 1.0 or time.time() - saved > SAVE_SECONDS:
                saved = time.time()
                self.save()
            if done == 1.0 or time.time() - looked > self.check_seconds:
                self.checked(check)
                looked = time.time()
            if done == 1.0:
                return


@torch.no_grad()
def dense_recall(trained: Trained, vocabulary: Vocabulary, count: int) -> float:
    """Share of things among the best-scored concepts, as many as the scene shows, on fixed scenes."""
    rng = random.Random("dense validation")
    scenes = [make_scene(vocabulary, rng, strength=CHECK_STRENGTH) for _ in range(count)]
    batch = collate(scenes, [describe(s, vocabulary.concepts, rng) for s in scenes], vocabulary.names)
    hits = 0.0
    for pixels, present in zip(batch.pixels.split(32), batch.present.split(32), strict=True):
        scores = trained.dense.image_scores(trained.dense.cell_scores(trained(pixels)))
        for row, truth in zip(scores, present, strict=True):
            hits += truth[row.topk(int(truth.sum())).indices].sum().item()
    return hits / batch.present.sum().item()


def train_dense(args: argparse.Namespace) -> None:
    """Trains vision tower and connector against the names' embeddings; writes `dense.pt`."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    vocabulary, held_out = vocabularies(args.work)
    language = language_parts(args.work)
    embeddings = load_file(language / "model.safetensors")["model.embed_tokens.weight"].float()
    trained = Trained(name_targets(embeddings, AutoTokenizer.from_pretrained(language), vocabulary.names))
    head = [*trained.connector.parameters(), *trained.dense.parameters()]
    groups = [
        {"params": [p for p in trained.tower.parameters() if p.requires_grad], "lr": 4e-4, "weight_decay": 0.0},
        {"params": head, "lr": 1e-3, "weight_decay": 0.01},
    ]
    run = Run("dense", args, trained, groups, decay=0.995, warmup=60)
    scenes = batches(vocabulary, args.batch, seed=run.step)

    def check() -> str:
        seen, unseen = (dense_recall(trained, v, args.check) for v in (vocabulary, held_out))
        return f"recall trained {seen:.3f} held out {unseen:.3f}"

    run.go(
        losses=lambda batch: [trained.dense(trained(batch.pixels), batch.cells, batch.present)],
        supply=lambda: next(scenes),
        check=check,
    )


@torch.no_grad()
def caption_check(
    trained: Trained, model: CaptionModel, lexicon: Lexicon, vocabulary: Vocabulary, count: int
) -> tuple[Tally, list[str]]:
    """Recall and CHAIR of greedy captions on fixed scenes, and truth and caption side by side."""
    rng = random.Random("caption validation")
    scenes = [make_scene(vocabulary, rng, strength=CHECK_STRENGTH) for _ in range(count)]
    tally, lines = Tally(), []
    for at in range(0, count, 24):
        some = scenes[at : at + 24]
        batch = collate(some, [""] * len(some), vocabulary.names)
        for scene, caption in zip(some, model.captions(trained(batch.pixels)), strict=True):
            said, others = lexicon.said(caption)
            tally.add(said, scene.names, others)
            lines.append(f"    {', '.join(scene.names)} | {caption.strip()}")
    return tally, lines


def make_models(args: argparse.Namespace, vocabulary: Vocabulary) -> tuple[CaptionModel, Trained]:
    """The caption model and everything trained, untrained yet."""
    model = CaptionModel(args.work, args.rank)
    return model, Trained(name_targets(model.embed.weight.float(), model.tokenizer, vocabulary.names), model.low_rank)


def train_captions(args: argparse.Namespace) -> None:
    """Goes on from `captions.pt`, else from the shipped file where asked, else from `dense.pt`."""
    vocabulary, held_out = vocabularies(args.work)
    lexicon = Lexicon(vocabulary.concepts.values(), read_aliases())
    model, trained = make_models(args, vocabulary)
    if args.from_shipped:
        read_shipped(WEIGHTS, trained)
    else:
        start = torch.load(args.work / "dense.pt", weights_only=True)
        trained.load_state_dict({**start["modules"], **start["ema"]}, strict=False)
    head = [*trained.connector.parameters(), *trained.dense.parameters()]
    groups = [
        {"params": [p for p in trained.tower.parameters() if p.requires_grad], "lr": 1.5e-4, "weight_decay": 0.0},
        {"params": head, "lr": 4e-4, "weight_decay": 0.01},
        {"params": [p for p in trained.low_rank.parameters() if p.requires_grad], "lr": 8e-4, "weight_decay": 0.0},
    ]
    for group in groups:
        group["lr"] *= args.rate
    run = Run("captions", args, trained, groups, decay=0.99, warmup=20)
    scenes = batches(vocabulary, args.batch + args.extra, seed=1000 + args.seed + run.step)

    def losses(batch: Batch) -> list[torch.Tensor]:
        tokens = trained(batch.pixels)
        side = trained.dense(tokens, batch.cells, batch.present)
        return [model.loss(tokens[: args.batch], batch.captions[: args.batch]), args.side * side]

    def check() -> str:
        report = []
        for word, v in (("trained", vocabulary), ("held out", held_out)):
            tally, lines = caption_check(trained, model, lexicon, v, args.check)
            report += [f"{word} recall {tally.recall:.3f} CHAIRi {tally.chair_i:.3f} {tally.others[:8]}", *lines[:8]]
        return "\n".join(report)

    run.go(losses, lambda: next(scenes), check)


def export(args: argparse.Namespace) -> None:
    """Writes the running mean of `captions.pt` as the shipped file."""
    from safetensors.torch import save_file

    vocabulary, _ = vocabularies(args.work)
    _, trained = make_models(args, vocabulary)
    state = torch.load(args.work / "captions.pt", weights_only=True)
    trained.load_state_dict({**state["modules"], **state["ema"]}, strict=False)
    save_file(shipped_tensors(trained), args.out, metadata={"steps": str(state["step"])})
    print(f"{args.out}: step {state['step']}, {args.out.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("dense", "captions", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and checkpoints")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--extra", type=int, default=0, help="scenes a step for the dense loss alone (captions)")
    parser.add_argument("--side", type=float, default=0.3, help="weight of the dense loss (captions)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the attention's changes (captions)")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on all learning rates (captions)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (captions)")
    parser.add_argument("--check", type=int, default=96, help="scenes per look at the recall")
    parser.add_argument("--check-minutes", type=float, default=15.0)
    parser.add_argument("--from-shipped", action="store_true", help="start captions from the package's weights")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (export)")
    args = parser.parse_args()
    torch.set_num_threads(2)
    {"dense": train_dense, "captions": train_captions, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
