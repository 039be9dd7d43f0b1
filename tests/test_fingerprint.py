"""The fingerprint of a model's weights: the same for the same weights, another for any other."""

import hashlib

import pytest
import torch
from torch import nn

from helpers.tiny import tiny_llava
from mmneurons.vlm import fingerprint as module
from mmneurons.vlm.fingerprint import fingerprint


class Two(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.b, self.a = nn.Parameter(one), nn.Parameter(other)


def test_it_is_the_sha256_of_names_shapes_and_bytes():
    one, other = torch.arange(6.0).reshape(2, 3), torch.tensor([1.5], dtype=torch.bfloat16)
    expected = hashlib.sha256(
        b"a (1,) torch.bfloat16\n" + b"\xc0\x3f" + b"b (2, 3) torch.float32\n" + one.numpy().tobytes()
    )
    assert fingerprint(Two(one, other)) == expected.hexdigest()


def test_chunks_make_no_difference(monkeypatch):
    model, _ = tiny_llava()
    whole = fingerprint(model)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert fingerprint(Two(torch.arange(6.0), torch.ones(3))) == fingerprint(Two(torch.arange(6.0), torch.ones(3)))
    monkeypatch.setattr(module, "_CHUNK", 4096)
    assert fingerprint(model) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_of_one_weight_changes_it(dtype):
    model = tiny_llava()[0].to(dtype)
    before = fingerprint(model)
    weight = model.model.language_model.layers[-1].mlp.down_proj.weight.data
    kept = weight.clone()
    weight.view(torch.int16 if dtype != torch.float32 else torch.int32)[3, 5] ^= 1
    assert fingerprint(model) != before
    weight.copy_(kept)
    assert fingerprint(model) == before


def test_layout_in_memory_makes_no_difference():
    square = torch.arange(9.0).reshape(3, 3)
    assert fingerprint(Two(square.T.contiguous(), square)) == fingerprint(Two(square.T, square))
