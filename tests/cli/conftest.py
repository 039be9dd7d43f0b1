"""A folder with pictures and a tiny checkpoint in it, to run the command in."""

import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from helpers.speaking import make_it_say
from helpers.tiny import tiny_llava

SAID = "An image of a dog and a ball."


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The folder of a tiny random LLaVA that says ``SAID`` of everything."""
    model, processor = tiny_llava()
    make_it_say(mmn.wrap(model, processor), SAID)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with seven pictures in ``photos``."""
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0)
    for index in range(7):
        pixels = noise.integers(0, 256, (40 + 5 * index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
