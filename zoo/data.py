"""Batches of scenes, drawn in worker processes while the model trains."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from zoo.scenes import GRID, Scene, Vocabulary, coverage, describe, make_scene

__all__ = ["Batch", "batches", "collate", "normalize"]

MEAN, STD = 0.498, 0.502
OBJECT_CELL = 0.25


@dataclass(frozen=True)
class Batch:
    """Scenes as tensors.

    Attributes:
        pixels: (batch, 3, side, side) uint8.
        cells: (batch, 49) index of the concept each cell shows, -1 for the background.
        present: (batch, concepts) 1 where the scene shows the concept.
        captions: What follows "An image of", with the full stop.
    """

    pixels: torch.Tensor
    cells: torch.Tensor
    present: torch.Tensor
    captions: list[str]


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pictures to what the vision tower takes."""
    return (pixels.float() / 255 - MEAN) / STD


def collate(scenes: list[Scene], captions: list[str], names: tuple[str, ...]) -> Batch:
    """Packs scenes; `names` gives the concepts their numbers."""
    number = {name: k for k, name in enumerate(names)}
    cells = np.full((len(scenes), GRID * GRID), -1, dtype=np.int64)
    present = np.zeros((len(scenes), len(names)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        shares = np.stack([coverage(o.mask).reshape(-1) for o in scene.objects])
        owner, most = shares.argmax(0), shares.max(0)
        for k, o in enumerate(scene.objects):
            present[row, number[o.name]] = 1
            # a thin thing may fill no cell by a quarter: then its fullest cell is its own
            cells[row, ((owner == k) & (most > OBJECT_CELL)) | (np.arange(GRID * GRID) == shares[k].argmax())] = number[
                o.name
            ]
    pixels = np.stack([np.asarray(scene.image) for scene in scenes]).transpose(0, 3, 1, 2)
    return Batch(torch.from_numpy(pixels.copy()), torch.from_numpy(cells), torch.from_numpy(present), captions)


class Scenes(IterableDataset):
    """Endless batches; every worker has a seed of its own."""

    def __init__(self, vocabulary: Vocabulary, batch: int, seed: int) -> None:
        self.vocabulary, self.batch, self.seed = vocabulary, batch, seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        while True:
            scenes = [make_scene(self.vocabulary, rng) for _ in range(self.batch)]
            captions = [describe(scene, self.vocabulary.concepts, rng) + "." for scene in scenes]
            yield collate(scenes, captions, self.vocabulary.names)


def batches(vocabulary: Vocabulary, batch: int, seed: int, workers: int = 1) -> Iterator[Batch]:
    """An endless supply of training batches."""
    loader = DataLoader(
        Scenes(vocabulary, batch, seed),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
