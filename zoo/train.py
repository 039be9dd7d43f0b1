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
from pathlib import Path

import torch
from torch import nn

from mmneurons.demo.assembly import WEIGHTS
from zoo.data import batches, collate, normalize
from zoo.fast_tower import FastTower
from zoo.model import (
    CaptionModel,
    Connector,
    Dense,
    Ema,
    language_parts,
    name_targets,
    pretrained_tower,
    read_shipped,
    shipped_tensors,
)
from zoo.scenes import Vocabulary, describe, make_scene
from zoo.score import Lexicon, Tally, read_aliases
from zoo.sprites import HELD_OUT, TRAINED, load, read_concepts

__all__ = ["export", "main", "train_captions", "train_dense"]


@torch.no_grad()
def dense_recall(tower: nn.Module, connector: nn.Module, dense: Dense, vocabulary: Vocabulary, count: int) -> float:
    """Share of things among the best-scored concepts, as many as the scene shows, on fixed scenes."""
    rng = random.Random("dense validation")
    scenes = [make_scene(vocabulary, rng, strength=0.4) for _ in range(count)]
    batch = collate(scenes, [describe(s, vocabulary.concepts, rng) for s in scenes], vocabulary.names)
    hits = 0.0
    for pixels, present in zip(batch.pixels.split(32), batch.present.split(32), strict=True):
        scores = dense.image_scores(dense.cell_scores(connector(tower(normalize(pixels)))))
        for row, truth in zip(scores, present, strict=True):
            hits += truth[row.topk(int(truth.sum())).indices].sum().item()
    return hits / batch.present.sum().item()


def train_dense(args: argparse.Namespace) -> None:
    """Trains vision tower and connector against the names' embeddings; writes `dense.pt`."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    sprites, concepts = load(args.work), read_concepts()
    vocabulary = Vocabulary(concepts, sprites, TRAINED)
    held_out = Vocabulary(concepts, sprites, (HELD_OUT,))
    language = language_parts(args.work)
    tokenizer = AutoTokenizer.from_pretrained(language)
    embeddings = load_file(language / "model.safetensors")["model.embed_tokens.weight"].float()
    modules = nn.ModuleDict(
        {
            "tower": FastTower(pretrained_tower()),
            "connector": Connector(),
            "dense": Dense(name_targets(embeddings, tokenizer, vocabulary.names)),
        }
    )
    tower, connector, dense = modules["tower"], modules["connector"], modules["dense"]
    tower.to(memory_format=torch.channels_last)
    trained = [p for p in tower.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "lr": 4e-4, "weight_decay": 0.0},
            {"params": list(connector.parameters()) + list(dense.parameters()), "lr": 1e-3, "weight_decay": 0.01},
        ]
    )
    peak = [group["lr"] for group in optimizer.param_groups]
    ema = Ema(modules, 0.995)
    path = args.work / "dense.pt"
    spent, step = 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        ema.mean, ema.steps = state["ema"], state["step"]
        spent, step = state["spent"], state["step"]
    supply = batches(vocabulary, args.batch, seed=step)
    began, saved, mean_loss = time.time() - spent, time.time(), None
    while True:
        done = (time.time() - began) / (args.minutes * 60)
        factor = min(1.0, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        batch = next(supply)
        loss = dense(connector(tower(normalize(batch.pixels))), batch.cells, batch.present)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in modules.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        ema.update(modules)
        step += 1
        mean_loss = loss.item() if mean_loss is None else 0.97 * mean_loss + 0.03 * loss.item()
        if step % 25 == 0:
            print(f"dense {step} {time.time() - began:.0f} s loss {mean_loss:.3f}", flush=True)
        finished = done >= 1.0
        if finished or time.time() - saved > 240:
            saved = time.time()
            state = {
                "modules": modules.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.mean,
                "spent": time.time() - began,
                "step": step,
            }
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
            modules.load_state_dict(ema.mean, strict=False)
            scores = [dense_recall(tower, connector, dense, v, args.check) for v in (vocabulary, held_out)]
            modules.load_state_dict(state["modules"])
            print(f"dense {step} recall trained {scores[0]:.3f} held out {scores[1]:.3f}", flush=True)
        if finished:
            return


@torch.no_grad()
def caption_check(
    tower: nn.Module, connector: nn.Module, model: CaptionModel, lexicon: Lexicon, vocabulary: Vocabulary, count: int
) -> tuple[Tally, list[str]]:
    """Recall and CHAIR of greedy captions on fixed scenes."""
    rng = random.Random("caption validation")
    scenes = [make_scene(vocabulary, rng, strength=0.4) for _ in range(count)]
    tally, lines = Tally(), []
    for at in range(0, count, 24):
        some = scenes[at : at + 24]
        batch = collate(some, [""] * len(some), vocabulary.names)
        for scene, caption in zip(some, model.captions(connector(tower(normalize(batch.pixels)))), strict=True):
            said, others = lexicon.said(caption)
            tally.add(said, scene.names, others)
            lines.append(f"{', '.join(scene.names)} | {caption.strip()}")
    return tally, lines


def make_modules(args: argparse.Namespace, vocabulary: Vocabulary) -> tuple[CaptionModel, nn.ModuleDict]:
    """The caption model and everything trained, untrained yet."""
    model = CaptionModel(args.work, args.rank)
    dense = Dense(name_targets(model.embed.weight.float(), model.tokenizer, vocabulary.names))
    modules = {"tower": FastTower(pretrained_tower()), "connector": Connector(), "dense": dense}
    return model, nn.ModuleDict({**modules, "low_rank": model.low_rank})


def export(args: argparse.Namespace) -> None:
    """Writes the running mean of `captions.pt` as the shipped file."""
    from safetensors.torch import save_file

    _, modules = make_modules(args, Vocabulary(read_concepts(), load(args.work), TRAINED))
    state = torch.load(args.work / "captions.pt", weights_only=True)
    modules.load_state_dict({**state["modules"], **state["ema"]}, strict=False)
    save_file(shipped_tensors(modules), args.out, metadata={"steps": str(state["step"])})
    print(f"{args.out}: step {state['step']}, {args.out.stat().st_size / 1e6:.1f} MB")


def train_captions(args: argparse.Namespace) -> None:
    """Continues from `dense.pt`, or from its own last checkpoint `captions.pt`."""
    sprites, concepts = load(args.work), read_concepts()
    vocabulary = Vocabulary(concepts, sprites, TRAINED)
    held_out = Vocabulary(concepts, sprites, (HELD_OUT,))
    lexicon = Lexicon(concepts, read_aliases())
    model, modules = make_modules(args, vocabulary)
    path = args.work / "captions.pt"
    state = {}
    if path.exists():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"], strict=False)
    elif args.from_shipped:
        read_shipped(WEIGHTS, modules)
    else:
        start = torch.load(args.work / "dense.pt", weights_only=True)
        modules.load_state_dict({**start["modules"], **start["ema"]}, strict=False)
    tower, connector, dense = modules["tower"], modules["connector"], modules["dense"]
    tower.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in tower.parameters() if p.requires_grad], "lr": 1.5e-4, "weight_decay": 0.0},
            {"params": list(connector.parameters()) + list(dense.parameters()), "lr": 4e-4, "weight_decay": 0.01},
            {"params": [p for p in model.low_rank.parameters() if p.requires_grad], "lr": 8e-4, "weight_decay": 0.0},
        ]
    )
    peak = [group["lr"] for group in optimizer.param_groups]
    ema = Ema(modules, 0.99)
    spent, step = 0.0, 0
    if state:
        optimizer.load_state_dict(state["optimizer"])
        ema.mean, ema.steps = state["ema"], state["step"]
        spent, step = state["spent"], state["step"]
    if args.compile:
        model.model.model = torch.compile(model.model.model, dynamic=True)
    supply = batches(vocabulary, args.batch + args.extra, seed=1000 + step)
    began, saved, checked, means = time.time() - spent, time.time(), time.time(), None
    while True:
        done = (time.time() - began) / (args.minutes * 60)
        factor = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        batch = next(supply)
        tokens = connector(tower(normalize(batch.pixels)))
        side = dense(tokens, batch.cells, batch.present)
        loss = model.loss(tokens[: args.batch], batch.captions[: args.batch])
        optimizer.zero_grad(set_to_none=True)
        (loss + args.side * side).backward()
        nn.utils.clip_grad_norm_([p for p in modules.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        ema.update(modules)
        step += 1
        now = torch.tensor([loss.item(), side.item()])
        means = now if means is None else means.lerp(now, 0.03)
        if step % 20 == 0:
            print(f"captions {step} {time.time() - began:.0f} s loss {means[0]:.3f} side {means[1]:.3f}", flush=True)
        finished = done >= 1.0
        if finished or time.time() - saved > 240:
            saved = time.time()
            state = {
                "modules": {n: t for n, t in modules.state_dict().items() if ".base." not in n},
                "optimizer": optimizer.state_dict(),
                "ema": ema.mean,
                "spent": time.time() - began,
                "step": step,
            }
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        if finished or time.time() - checked > args.check_minutes * 60:
            current = {n: p.detach().clone() for n, p in modules.named_parameters() if n in ema.mean}
            modules.load_state_dict(ema.mean, strict=False)
            for word, v in (("trained", vocabulary), ("held out", held_out)):
                tally, lines = caption_check(tower, connector, model, lexicon, v, args.check)
                print(f"captions {step} {word} recall {tally.recall:.3f} CHAIRi {tally.chair_i:.3f} {tally.others[:8]}")
                print("   ", "\n    ".join(lines[:8]), flush=True)
            modules.load_state_dict(current, strict=False)
            checked = time.time()
        if finished:
            return


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("dense", "captions", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and checkpoints")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--check", type=int, default=96, help="scenes per look at the recall")
    parser.add_argument("--extra", type=int, default=24, help="scenes a step for the dense loss alone (captions)")
    parser.add_argument("--side", type=float, default=0.3, help="weight of the dense loss (captions)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the attention's changes (captions)")
    parser.add_argument("--check-minutes", type=float, default=15.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--from-shipped", action="store_true", help="start captions from the package's weights")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (export)")
    args = parser.parse_args()
    torch.set_num_threads(2)
    {"dense": train_dense, "captions": train_captions, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
