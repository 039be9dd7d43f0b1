"""Drawings made here, so that scenes can be tested without the emoji packages."""

import numpy as np
import pytest
from zoo.scenes import Vocabulary
from zoo.sprites import Concept, Sprite

COLORS = {"apple": (220, 20, 20), "frog": (20, 200, 30), "bus": (240, 220, 20), "unicorn": (250, 250, 250)}


@pytest.fixture(scope="session")
def concepts():
    names = [Concept(name, (name,), "count") for name in COLORS]
    return (*names, Concept("scissors", ("scissors",), "plural"), Concept("bread", ("bread",), "mass"))


@pytest.fixture(scope="session")
def vocabulary(concepts):
    """Every concept is an ellipse of its own color in two styles."""
    y, x = np.mgrid[-1:1:80j, -1:1:100j]
    alpha = ((x**2 + y**2 < 1) * 255).astype(np.uint8)
    sprites = {}
    for k, concept in enumerate(concepts):
        rgb = np.broadcast_to(np.uint8(COLORS.get(concept.name, (40 * k, 90, 120))), (80, 100, 3))
        sprites[concept.name] = [Sprite(style, concept.name, np.dstack([rgb, alpha])) for style in ("one", "other")]
    return Vocabulary(concepts, sprites, ("one",))
