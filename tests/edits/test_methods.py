"""The ways of making an edit, each against what it says of itself, on the demo model."""

import pytest
import torch

import mmneurons as mmn
from mmneurons.edits.learned import Learned, LoRA
from mmneurons.edits.methods import METHODS, make_method
from mmneurons.edits.neurons import best_neurons
from mmneurons.edits.rivals import Ban, Erase, KnowledgeNeurons, Scale
from mmneurons.edits.solution import holds, live, reached
from mmneurons.edits.task import Swap, Task, make_task, says
from mmneurons.errors import OptionError
from mmneurons.finders import Contribution, Target
from mmneurons.measures.edit_outcome import Pool
from mmneurons.vlm.sites import columns
from mmneurons.vlm.spellings import respelled, spelled
from mmneurons.vlm.upper import upper

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def recordings(demo):
    return mmn.record(demo, [picture.path for picture in mmn.demo.pictures()[:8]], image_budget=0)


def task_of(demo, recordings, to):
    dogs = [(one, None) for one in recordings if says(one, Swap("dog", None))]
    keep = [one for one in recordings if not says(one, Swap("dog", None))]
    return make_task(demo, Swap("dog", to, inflections=False), dogs, keep)


@pytest.fixture(scope="module")
def task(demo, recordings):
    return task_of(demo, recordings, "cat")


def ids(demo, text):
    return demo.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_best_neurons_are_those_with_the_highest_sum_of_scores(demo, task):
    total = 0
    for want in task.wants:
        now = int(want.recording.logits[want.step].argmax())
        (scores,) = Contribution()(demo, want.recording, [Target(want.step, now)])
        total = total + scores.values
    width = total.shape[1]
    expected = [divmod(int(index), width) for index in total.flatten().topk(5).indices]
    assert best_neurons(task, "contribution", 5) == expected
    total[27:] = -torch.inf
    expected = [divmod(int(index), width) for index in total.flatten().topk(5).indices]
    assert best_neurons(task, "contribution", 5, skip_last=3) == expected


def test_knowledge_neurons_get_the_difference_of_unembeddings(demo, recordings, task):
    head = demo.model.get_output_embeddings().weight.detach()
    (cat,), (dog,) = ids(demo, " cat"), ids(demo, " dog")
    for own, direction in (
        (task, 2 * (head[cat] - head[dog])),
        (task_of(demo, recordings, None), -2 * head[dog]),
    ):
        solution = KnowledgeNeurons(k=6, finder="contribution")(own)
        places = [(delta.block, column) for delta in solution.deltas for column in delta.columns.tolist()]
        assert sorted(places) == sorted(best_neurons(own, "contribution", 6))
        for delta in solution.deltas:
            torch.testing.assert_close(delta.vectors, direction.expand(len(delta.columns), -1))


@pytest.mark.parametrize(("method", "left"), [(Erase(k=4), 0.0), (Scale(k=4, factor=-2.0), -2.0)])
def test_columns_are_multiplied(demo, task, method, left):
    solution = method(task)
    assert sum(len(delta.columns) for delta in solution.deltas) == 4
    for delta in solution.deltas:
        own = columns(demo.model, demo.anatomy.blocks[delta.block].sites[0], delta.columns.tolist())
        torch.testing.assert_close(own + delta.vectors, left * own)


def test_a_banned_word_is_not_generated(demo, recordings):
    pictures = [picture.path for picture in mmn.demo.pictures()[:8]]
    edit = mmn.edit(demo, "dog", None, pictures=pictures, bundled=False, method="ban")
    assert not edit.deltas
    assert {tuple(ids(demo, " dog")), tuple(ids(demo, " dogs"))} <= set(edit.banned)
    weights = {name: weight.clone() for name, weight in demo.model.named_parameters()}
    with edit.on(demo):
        after = mmn.caption(demo, pictures)
        assert all(torch.equal(weight, weights[name]) for name, weight in demo.model.named_parameters())
    for old, new in zip(recordings, after, strict=True):
        assert "dog" not in new
        assert says(old, Swap("dog", None)) or new == old.caption


@pytest.mark.parametrize("named", ["Dog", "dogs", "DOGS"])
def test_a_ban_is_of_all_forms_however_the_word_is_named(demo, named):
    pictures = [picture.path for picture in mmn.demo.pictures()[:4]]
    edit = mmn.edit(demo, named, None, pictures=pictures, bundled=False, method="ban")
    assert {
        tuple(ids(demo, f"{before}{form}")) for form in ("dog", "dogs", "Dogs", "DOG") for before in ("", " ")
    } <= set(edit.banned)
    with edit.on(demo):
        assert not any("dog" in caption.lower() for caption in mmn.caption(demo, pictures))


def test_other_spellings_of_a_banned_word_are_banned_too(demo):
    pictures = [picture.path for picture in mmn.demo.pictures()[:4]]
    edit = mmn.edit(demo, "dog", None, pictures=pictures, bundled=False, method="ban")
    vocabulary = demo.processor.tokenizer.get_vocab()
    assert {(vocabulary["Ġdo"], vocabulary["g"]), (vocabulary["Do"], vocabulary["g"])} <= set(edit.banned)
    # the end of another word is not the word
    assert (vocabulary["do"], vocabulary["g"]) not in edit.banned


@pytest.mark.parametrize(
    ("text", "others"),
    [(" volleyball", [("Ġvolley", "ball"), ("Ġvol", "ley", "ball")]), ("Dog", [("Do", "g"), ("D", "o", "g")])],
)
def test_all_spellings_read_the_same(demo, text, others):
    tokenizer = demo.processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    found = respelled(tokenizer, vocabulary, spelled(tokenizer, text))
    assert {tuple(vocabulary[one] for one in other) for other in others} | {spelled(tokenizer, text)} <= found
    assert {tokenizer.decode(one) for one in found} == {text}
    assert max(map(len, found)) <= 4


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("traffic-light", "two traffic lights"),
        ("traffic light", "a Traffic-Light"),
        ("traffic  light", "a traffic light"),
        ("driver's seat", "a driver’s seat"),
    ],
)
def test_a_ban_is_of_a_phrase_however_it_is_joined(demo, named, said):
    solution = Ban()(Task(demo, Swap(named, None), (), ()))
    assert holds(ids(demo, f" {said}"), solution.banned)
    assert not holds(ids(demo, " traffic and a light in the seat of a driver"), solution.banned)


def test_a_ban_does_not_say_what_is_wanted_instead(demo):
    pictures = [picture.path for picture in mmn.demo.pictures()[:4]]
    made = [mmn.edit(demo, "dog", to, pictures=pictures, bundled=False, method="ban") for to in ("cat", None)]
    assert [edit.converged for edit in made] == [False, True]


@pytest.mark.slow
def test_what_is_learned_says_the_target(demo, task):
    solution = Learned(k=5, steps=40, rate=0.05)(task)
    assert sum(len(delta.columns) for delta in solution.deltas) == 5
    above = upper(demo, task.said(), solution.deltas[0].block)
    assert all(reached(task, above, live(demo, solution.deltas)))


@pytest.mark.slow
def test_fine_moves_weights_by_its_own_rate_and_leaves_the_last_blocks(demo, task):
    solution = make_method("fine", {"steps": 1})(task)
    assert sum(len(delta.columns) for delta in solution.deltas) == 5
    assert max(delta.block for delta in solution.deltas) < 27
    for delta in solution.deltas:
        # Adam's first step is the rate wherever there is a gradient
        moved = delta.vectors.abs()
        assert torch.allclose(moved[moved > 0], torch.tensor(1e-3), rtol=1e-2)
        assert (moved > 0).float().mean() > 0.99


@pytest.mark.slow
def test_a_keep_set_holds_what_is_learned_back(demo, task):
    """Beside the same steps without one."""
    places = {}
    for name, keep in (("alone", 0.0), ("kept", 20.0)):
        solution = LoRA(rank=2, blocks=(-1,), steps=8, rate=0.01, keep=keep)(task)
        above = upper(demo, task.kept_said(), solution.deltas[0].block)
        before = torch.cat([kept.recording.logits[list(kept.steps)] for kept in task.kept]).log_softmax(-1)
        after = above.logits(live(demo, solution.deltas)).log_softmax(-1)
        places[name] = float((before.exp() * (before - after)).sum(-1).mean())
    assert 0 < places["kept"] < 0.9 * places["alone"]


@pytest.mark.slow
def test_a_low_rank_is_a_low_rank(task):
    solution = LoRA(rank=2, blocks=(-2, -1), steps=2)(task)
    assert [delta.block for delta in solution.deltas] == [28, 29]
    for delta in solution.deltas:
        assert delta.weights.shape == (1536, 2)
        assert torch.linalg.matrix_rank(delta.vectors) <= 2
        assert delta.vectors.abs().max() > 0


def test_captions_are_those_that_would_be_generated(demo, recordings):
    """Only what changes is generated again; all of it would give the same."""
    pictures = [picture.path for picture in mmn.demo.pictures()[:8]]
    edit = mmn.edit(demo, "dog", "cat", pictures=pictures[:4], bundled=False, margin=40.0)
    outcomes = Pool(demo, recordings).outcomes(edit)
    with edit.on(demo):
        assert [one.after for one in outcomes] == mmn.caption(demo, pictures)
        logits = [mmn.record(demo, picture, caption=one.before).logits for picture, one in zip(pictures, outcomes)]
    for old, new, one in zip(recordings, logits, outcomes, strict=True):
        steps = min(len(old), len(new))
        same = (old.logits[:steps].argmax(-1) == new[:steps].argmax(-1)).float().mean()
        assert one.agreement.top == pytest.approx(float(same), abs=1e-6)
    assert any(not one.unchanged for one in outcomes)


@pytest.mark.parametrize(
    ("name", "wrong", "says_"),
    [
        ("finetune", {"blocks": (-1,)}, "is for k=None"),
        ("finetune", {"k": None, "blocks": ()}, "names no block"),
        ("lora", {"blocks": ()}, "names no block"),
        ("lora", {"keep": -1.0}, "keep=-1.0 is not possible"),
        ("learned", {"earlier": -0.1}, "earlier=-0.1 is not possible"),
        ("refined", {"repeat": float("nan")}, "repeat=nan is not possible"),
        ("fine", {"size": -1.0}, "size=-1.0 is not possible"),
        ("learned", {"rate": 1e300}, r"rate=1e\+300 is not possible: it is a number above 0, up to 1e\+06"),
        ("finetune", {"rate": 0.0}, "rate=0.0 is not possible"),
        ("lora", {"seed": 2**63}, "seed=9223372036854775808 is not possible"),
        ("refined", {"seed": -1}, "seed=-1 is not possible"),
    ],
)
def test_options_that_are_not_possible(name, wrong, says_):
    with pytest.raises(OptionError, match=says_):
        make_method(name, wrong)


@pytest.mark.parametrize(("name", "wrong"), [("finetune", {"k": None, "blocks": (30,)}), ("lora", {"blocks": (-31,)})])
def test_blocks_that_there_are_not(task, name, wrong):
    with pytest.raises(OptionError, match="There is no block"):
        make_method(name, wrong)(task)


@pytest.mark.parametrize("skip_last", [-1, 30])
def test_blocks_at_the_end_that_cannot_be_left_out(task, skip_last):
    with pytest.raises(OptionError, match=r"skip_last=.* whole number from 0 to 29"):
        best_neurons(task, "contribution", 1, skip_last)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_defaults_and_refuses_what_it_has_not(name):
    make_method(name, {})
    with pytest.raises(OptionError, match="has no option"):
        make_method(name, {"nonsense": 1})
