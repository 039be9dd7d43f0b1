"""BERTScore and MoverScore against brute force, on a tiny random encoder; sensitivity on planted neurons."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

import mmneurons as mmn
from helpers.tiny import tiny_llava
from mmneurons.errors import ExtraMissingError, ModelLoadError, OptionError
from mmneurons.measures.case import Case, Ranking
from mmneurons.measures.sensitivity import SemanticSensitivity
from mmneurons.measures.similarity import bert_scores, earth_mover, frequencies, mover_scores
from mmneurons.vlm.text_encoder import load_clip, load_text_encoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "dog",
    "cat",
    "ball",
    "runs",
    "on",
    "the",
    "grass",
    "two",
    "red",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(path)
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder)


def states(encoder, text, layer):
    given = encoder.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        every = encoder.model(**given, output_hidden_states=True).hidden_states
    rows = torch.stack(every)[layer] if isinstance(layer, int) else torch.stack(every[-5:]).mean(0)
    own = rows[0].numpy()
    return given["input_ids"][0].tolist(), own / np.linalg.norm(own, axis=1, keepdims=True)


def brute_bert(encoder, first, second, layer):
    (_, a), (_, b) = states(encoder, first, layer), states(encoder, second, layer)
    precision = np.mean([max(float(row @ other) for other in b) for row in a[1:-1]])
    recall = np.mean([max(float(row @ other) for other in a) for row in b[1:-1]])
    return precision, recall, 2 * precision * recall / (precision + recall)


PAIRS = [("a dog runs", "the cat runs"), ("two red ball", "a red ball on the grass"), ("dog", "dog")]


@pytest.mark.parametrize("layer", [1, 4, 6])
def test_bert_scores_are_those_of_brute_force(encoder, layer):
    scores = bert_scores(encoder, [a for a, _ in PAIRS], [b for _, b in PAIRS], layer)
    for (first, second), score in zip(PAIRS, scores):
        expected = brute_bert(encoder, first, second, layer)
        assert (score.precision, score.recall, score.f1) == pytest.approx(expected, abs=1e-5)
    assert scores[2].f1 == pytest.approx(1)


def test_texts_of_one_call_do_not_change_one_another(encoder):
    texts = [a for a, _ in PAIRS] * 30
    others = [b for _, b in PAIRS] * 30
    scores = bert_scores(encoder, texts, others)
    assert scores[0].f1 == pytest.approx(bert_scores(encoder, texts[:1], others[:1])[0].f1, abs=1e-5)


def test_an_empty_text_has_no_score(encoder):
    (score,) = bert_scores(encoder, [""], ["a dog"])
    assert math.isnan(score.f1)
    assert math.isnan(mover_scores(encoder, ["a dog"], [""])[0])


def test_earth_mover_is_the_best_of_all_assignments():
    draw = np.random.default_rng(0)
    for _ in range(5):
        cost = draw.random((4, 4))
        best = min(sum(cost[k, order[k]] for k in range(4)) / 4 for order in itertools.permutations(range(4)))
        assert earth_mover(np.full(4, 0.25), np.full(4, 0.25), cost) == pytest.approx(best, abs=1e-9)
    # all of the weight has one place to go to
    assert earth_mover(np.array([0.3, 0.7]), np.array([1.0]), np.array([[2.0], [1.0]])) == pytest.approx(1.3)


def test_mover_scores_move_normed_states(encoder):
    first, second = "dog cat", "ball grass"
    (ids, a), (_, b) = states(encoder, first, None), states(encoder, second, None)
    a, b = a[1:-1], b[1:-1]
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
    best = min(cost[0, 0] + cost[1, 1], cost[0, 1] + cost[1, 0]) / 2
    assert mover_scores(encoder, [first], [second])[0] == pytest.approx(1 - best, abs=1e-5)
    assert mover_scores(encoder, [first], [first])[0] == pytest.approx(1, abs=1e-3)
    rare = frequencies(encoder, ["dog", "dog cat", "dog ball"])
    assert rare[ids[1]] == pytest.approx(math.log(4 / 4))
    assert rare[ids[2]] == pytest.approx(math.log(4 / 2))
    # the frequent word weighs nothing, so all of the weight comes from the other
    shares = np.array([1e-6, math.log(2)])
    shares = shares / shares.sum()
    rarest = max(rare.values())
    expected = 1 - earth_mover(
        shares, np.array([rare[WORDS.index("ball")], rarest]) / (rare[WORDS.index("ball")] + rarest), cost.astype(float)
    )
    assert mover_scores(encoder, [first], [second], rare)[0] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_loaded(tmp_path, monkeypatch, encoder):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="no text encoder"):
        load_text_encoder(tmp_path)
    with pytest.raises(ModelLoadError, match="no CLIP"):
        load_clip(tmp_path)
    monkeypatch.setattr("mmneurons.vlm.text_encoder.find_spec", lambda _: None)
    with pytest.raises(ExtraMissingError, match=r"requirements/measure\.txt"):
        load_text_encoder()
    with pytest.raises(OptionError, match="no layer 7"):
        bert_scores(encoder, ["a"], ["a"], 7)


def test_the_default_encoder_tells_paraphrases():
    try:
        own = load_text_encoder()
    except ExtraMissingError:
        pytest.skip("all-MiniLM-L6-v2 is not installed (requirements/measure.txt)")
    reference = "two dogs playing with a red frisbee on the grass"
    like, other = "a pair of puppies chase a frisbee in a field", "a man rides a surfboard on a wave"
    scores = bert_scores(own, [like, other], [reference] * 2)
    assert scores[0].f1 > scores[1].f1 + 0.1
    moved = mover_scores(own, [like, other], [reference] * 2)
    assert moved[0] > moved[1]
    assert own.name == "all-MiniLM-L6-v2"


def test_a_clip_of_ones_own(tmp_path):
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
    )

    from helpers.tiny import tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer) + 8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        tmp_path
    )
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer
    )
    processor.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    cosines = clip.cosines(["a dog", "a ball"], [picture, picture])
    given = processor(text=["a dog"], images=[picture], return_tensors="pt")
    with torch.no_grad():
        a = clip.model.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        b = clip.model.get_image_features(pixel_values=given["pixel_values"])
    a, b = (getattr(one, "pooler_output", one) for one in (a, b))
    assert float(cosines[0]) == pytest.approx(float(torch.nn.functional.cosine_similarity(a, b)[0]), abs=1e-5)


def test_planted_words_are_more_like_the_caption(folder):
    """Neurons that write the words of the caption score higher than such that write others."""
    encoder = load_text_encoder(folder)
    vlm = mmn.wrap(*tiny_llava())
    said = mmn.find(vlm, Image.new("RGB", (64, 64)), caption="An image of a dog and a ball.", words=["dog", "ball"])
    tokens = {part.word: part.token_ids[0] for part in said}
    layer = vlm.model.model.language_model.layers[-1]
    last = len(vlm.anatomy.blocks) - 1
    mean = vlm.model.lm_head.weight.detach().mean(0)
    with torch.no_grad():
        for unit, token in enumerate(tokens.values()):
            layer.mlp.down_proj.weight[:, unit] = vlm.model.lm_head.weight[token] - mean
    found = mmn.find(vlm, Image.new("RGB", (64, 64)), caption="An image of a dog and a ball.", words=["dog"])
    zeros = torch.zeros(len(vlm.anatomy.blocks), vlm.anatomy.width)

    def ranking(places, signs):
        return Ranking(tuple(places), tuple(signs), (0.0,) * len(places), zeros, 0.0)

    words = [(last, 0), (last, 1)]
    case = Case(found["dog"], {"for": ranking(words, (1, 1)), "against": ranking(words, (-1, -1))})
    measure = SemanticSensitivity(encoder, ks=(1, 2), promotes=1)
    seen = {(one.finder, one.quantity, one.k): one.value for _, one in measure([case])}
    texts = measure._texts(case, 2)
    assert texts["for"] == ["dog", "ball."]
    assert texts["against"] != texts["for"]
    reference = found.caption
    by_hand = [score.f1 for score in bert_scores(encoder, ["dog", "ball."], [reference] * 2)]
    assert seen["for", "BERTScore", 1] == pytest.approx(by_hand[0], abs=1e-5)
    assert seen["for", "BERTScore", 2] == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert seen["for", "MoverScore", 2] == pytest.approx(
        np.mean(mover_scores(encoder, ["dog", "ball."], [reference] * 2)), abs=1e-5
    )
