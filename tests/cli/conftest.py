"""A folder with pictures, to run the command in."""

import numpy as np
import pytest
from PIL import Image


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
