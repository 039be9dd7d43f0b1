import polars
import pytest
import torch

import mmneurons as mmn
from mmneurons.errors import OptionError
from mmneurons.neurons import NeuronRow, NeuronTable, output_vectors
from mmneurons.promotion import promoted_ids

CAPTION = "An image of a dog and a ball."


@pytest.fixture(scope="module")
def dog(llava, picture):
    return mmn.find(llava, picture, caption=CAPTION)["dog"]


def by_brute_force(vlm, vector, by, k):
    """Every ordinary token, one by one, in float64."""
    head = vlm.model.lm_head.weight.detach().double()
    tokenizer = vlm.processor.tokenizer
    silent = {*tokenizer.all_special_ids, vlm.image_token_id}
    ordinary = [i for i in range(len(tokenizer)) if i not in silent]
    read = vector.double() * vlm.model.model.language_model.norm.weight.detach().double()
    mean = head[ordinary].mean(0)
    scores = {}
    for token in ordinary:
        if by == "product":
            scores[token] = float(head[token] @ read)
        else:
            scores[token] = float(torch.cosine_similarity(head[token] - mean, read, dim=0))
    return sorted(scores, key=lambda token: -scores[token])[:k]


@pytest.mark.parametrize("by", ["cosine", "product"])
def test_promoted_tokens_against_brute_force(llava, by):
    vectors = output_vectors(llava, [(0, 3), (2, 100), (1, 7)])
    vectors[1] *= -1
    assert promoted_ids(llava, vectors, 12, by) == [by_brute_force(llava, vector, by, 12) for vector in vectors]


def test_output_vectors_are_columns(llava):
    (vector,) = output_vectors(llava, [(2, 100)])
    weight = llava.model.model.language_model.layers[2].mlp.down_proj.weight
    assert torch.equal(vector, weight[:, 100].detach())
    assert torch.equal(llava.neuron("L2.u100").output_vector, vector)


def test_promoting_with_the_other_sign_is_promoting_the_opposite(llava):
    neuron = llava.neuron(1, 5)
    opposite = promoted_ids(llava, -neuron.output_vector[None], 5, "product")[0]
    tokenizer = llava.processor.tokenizer
    assert neuron.promotes(5, sign=-1, by="product") == tuple(tokenizer.decode([i]).strip() for i in opposite)
    assert neuron.promotes(5) != neuron.promotes(5, sign=-1)


def test_the_table_is_ranked_by_score(dog):
    table = dog.top(25)
    flat = sorted(dog.scores.flatten().tolist(), reverse=True)
    assert [row.score for row in table] == pytest.approx(flat[:25])
    assert [row.rank for row in table] == list(range(25))
    for row in table:
        assert row.neuron == f"L{row.layer}.u{row.unit}"
        assert row.score == pytest.approx(float(dog.scores[row.layer, row.unit]))
        assert row.activation == pytest.approx(float(dog.activations[row.layer, row.unit]))


def test_promotes_follows_the_sign_of_the_activation(llava, dog):
    for row in dog.top(10):
        sign = -1 if row.activation < 0 else 1
        assert row.promotes == llava.neuron(row.neuron).promotes(10, sign=sign)
    assert any(row.activation < 0 for row in dog.top(10))


def test_as_many_as_there_are_and_no_more(dog, unchecked):
    assert len({row.neuron for row in dog.top(336, promotes=1)}) == 336
    for k in (0, -1, 337):
        with pytest.raises(OptionError, match="336 neurons"):
            dog.top(k)
    with pytest.raises(OptionError, match="'cosine' or 'product'"):
        dog.top(1, by="dot")


def test_frames_and_files(dog, tmp_path):
    table = dog.top(4)
    frame = table.to_polars()
    assert frame.columns == ["rank", "neuron", "layer", "expert", "unit", "score", "share", "activation", "promotes"]
    assert frame["promotes"].to_list() == [list(row.promotes) for row in table]
    table.to_parquet(tmp_path / "dog.parquet")
    assert polars.read_parquet(tmp_path / "dog.parquet").equals(frame)
    assert table.to_pandas()["neuron"].tolist() == [row.neuron for row in table]


def test_what_a_model_says_is_text_not_markup():
    row = NeuronRow(0, "L0.u1", 0, 1, 1.0, None, -0.5, ("<script>", "[bold]x", "\x1b[31m", "a\nb"))
    table = NeuronTable("'<b>' in 'x & y'", (row,))
    page = table._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "x &amp; y" in page
    text = str(table)
    assert "[bold]x" in text
    assert "\x1b" not in text
    assert len([line for line in text.splitlines() if "L0.u1" in line]) == 1


def test_a_neuron_on_pictures(llava, pictures):
    neuron = llava.neuron("L2.u100")
    one = neuron.activations(pictures[0])
    recording = mmn.record(llava, pictures[0])
    assert one.caption == recording.caption
    assert one.steps.tolist() == pytest.approx(recording.activations[:, 2, 100].tolist(), abs=1e-4)
    assert one.image.tolist() == pytest.approx(recording.image_activations[2, :, 100].tolist(), abs=1e-4)
    assert [a.caption for a in neuron.activations(pictures[:2])] == mmn.caption(llava, pictures[:2])
