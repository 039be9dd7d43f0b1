"""Models and pictures that tests share. They are read-only: a test that changes weights makes a model of its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jaxtyping
import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from helpers import tiny
from helpers.speaking import SAID, make_it_say

FAMILIES = {
    "llava": tiny.tiny_llava,
    "llava_next": tiny.tiny_llava_next,
    "llava_onevision": tiny.tiny_llava_onevision,
}


@pytest.fixture(scope="session", params=FAMILIES)
def vlm(request):
    """A tiny random model of every family."""
    return mmn.wrap(*FAMILIES[request.param]())


@pytest.fixture
def unchecked():
    """Without the checks of annotations that only tests have, so that our own checks of bad values are reached."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The folder of a tiny random LLaVA that says ``SAID`` of everything."""
    model, processor = tiny.tiny_llava()
    make_it_say(mmn.wrap(model, processor), SAID)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava():
    """One tiny random LLaVA."""
    return mmn.wrap(*tiny.tiny_llava())


@pytest.fixture(scope="session")
def demo():
    """The demo model."""
    return mmn.load("demo")


@pytest.fixture(scope="session")
def pictures():
    """Noise of three shapes."""
    draw = np.random.default_rng(0)
    sizes = [(70, 90), (56, 56), (120, 60)]
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="session")
def picture(pictures):
    """Noise."""
    return pictures[0]
