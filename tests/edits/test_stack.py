"""Edits in force are what their formula says, and leave no trace when they go: in every dtype, layout and order."""

import copy
import gc
import itertools
import weakref

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import mmneurons as mmn
from helpers.families import FAMILIES, Case, redraw
from mmneurons.edits import Delta, Edit, stack
from mmneurons.edits.solution import live
from mmneurons.edits.stack import active, applied, apply, base_fingerprint, revert, shared
from mmneurons.errors import EditError
from mmneurons.interventions import zeroed
from mmneurons.vlm.changes import ALL, Change, changed
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.sites import columns

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {
    "a dense FFN": "llava",
    "dense, stored the other way round": "vision-encoder-decoder",
    "experts": "qwen3_vl_moe",
    "experts, stored the other way round, and a dense FFN": "llama4",
    "experts and a shared one": "qwen3_5_moe",
}


# the frequencies of one family's positions are complex, and a conversion of the model leaves half of them
pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values")


def bits(weight):
    return weight.detach().view(BITS[weight.element_size()])


def wide_llava():
    """A LLaVA wide enough for blocks of quantised numbers."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    language = tf.LlamaConfig(vocab_size=200, num_hidden_layers=3, pad_token_id=0, **sizes)
    vision = tf.CLIPVisionConfig(num_hidden_layers=2, image_size=28, patch_size=14, **sizes)
    config = tf.LlavaConfig(vision_config=vision, text_config=language, image_token_id=199, image_token_index=199)
    ids = torch.tensor([[1, 5, *[199] * 4, 6, 7]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    case = Case(
        tf.LlavaForConditionalGeneration(config),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels},
    )
    redraw(case.model, case.writes)
    return case


class Studied:
    """A tiny model, all of whose bits are remembered."""

    def __init__(self, family="llava", dtype=torch.float32):
        case = FAMILIES[family]() if family in FAMILIES else wide_llava()
        self.model, self.inputs = case.model, case.inputs
        self.vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
        self.model.to(dtype)
        self.inputs = {name: one.to(dtype) if one.is_floating_point() else one for name, one in self.inputs.items()}
        if self.vlm.is_encoder_decoder:
            self.inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6]])
        self.remember()

    def tensors(self):
        return dict(itertools.chain(self.model.named_parameters(), self.model.named_buffers()))

    def remember(self):
        self.weights = {name: bits(weight).clone() for name, weight in self.tensors().items()}
        self.hooks = self.count_hooks()
        self.fingerprint = fingerprint(self.model)

    def count_hooks(self):
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self.model.modules())

    def changed(self):
        """The names of the tensors that have other bits than remembered."""
        now = self.tensors()
        assert now.keys() == self.weights.keys()
        return {name for name, weight in now.items() if not torch.equal(bits(weight), self.weights[name])}

    def untouched(self):
        return not self.changed() and self.count_hooks() == self.hooks and active(self.vlm) == ()

    def forward(self):
        with torch.no_grad():
            return self.model(**self.inputs, use_cache=False).logits.float()

    def edit(self, seed, size=6, scale=0.5, spread=1.0, **more):
        """Some columns of most blocks, drawn so that edits meet; every second one is of rank one."""
        draw = torch.Generator().manual_seed(seed)
        deltas = []
        for index, block in enumerate(self.vlm.anatomy.blocks):
            if index and float(torch.rand((), generator=draw)) > 0.8:
                continue
            # of every site, so that each kind is met
            drawn = []
            for site in block.sites:
                among = max(size + 2, int(site.width * spread))
                drawn.append(site.start + torch.randperm(among, generator=draw)[:size])
            columns = torch.cat(drawn).sort().values
            rank = len(columns) if seed % 2 else 1
            weights = torch.eye(len(columns)) if seed % 2 else torch.randn(len(columns), 1, generator=draw)
            directions = scale * torch.randn(rank, self.vlm.anatomy.hidden, generator=draw)
            deltas.append(Delta(index, columns, weights, directions))
        about = {"name": "tiny", "class": type(self.model).__name__, "fingerprint": self.fingerprint}
        return Edit(tuple(deltas), {"source": f"s{seed}", "to": "t", "method": "random"}, about, **more)

    def place(self, block, column):
        """The name of a neuron's weight, and where its column lies in it."""
        site = self.vlm.anatomy.site(block, column)
        unit, name = column - site.start, f"{site.module}.{site.parameter}"
        if site.experts is None:
            return name, (unit,) if site.transposed else (slice(None), unit)
        expert, inner = divmod(unit, site.experts.width)
        return name, (expert, inner) if site.experts.transposed else (expert, slice(None), inner)

    def column(self, block, column):
        """A view of the column that a neuron writes with."""
        name, where = self.place(block, column)
        return self.tensors()[name].detach()[where]

    def holds(self, edits):
        """Whether all weights are what these edits make of the remembered ones, computed neuron by neuron."""
        expected = {name: weight.clone() for name, weight in self.weights.items()}
        now = self.tensors()
        sums = {}
        for edit in sorted(edits, key=lambda edit: edit.edit_id):
            for delta in edit.deltas:
                for column, row in zip(delta.columns.tolist(), delta.weights):
                    # of rank one or the identity: exact whatever the order
                    vector = (row[:, None] * delta.directions).sum(0)
                    key = (delta.block, column)
                    if key not in sums:
                        name, where = self.place(*key)
                        sums[key] = self.weights[name].view(now[name].dtype)[where].float()
                    sums[key] = sums[key] + vector
        for key, total in sums.items():
            name, where = self.place(*key)
            expected[name][where] = bits(total.to(now[name].dtype))
        return all(torch.equal(bits(weight), expected[name]) for name, weight in now.items())


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda name: name.replace(" ", "_"))
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module", params=DTYPES)
def studied(request, layout):
    return Studied(layout, DTYPES[request.param])


@pytest.fixture(scope="module")
def llava():
    made = Studied()
    yield made
    assert made.untouched()


@pytest.fixture
def own():
    """A model that a test may spoil."""
    return Studied()


def test_live_weights_are_the_formula_in_any_order(studied):
    edits = [studied.edit(seed) for seed in range(4)]
    met = [neuron for edit in edits for neuron in edit.neurons]
    assert len(set(met)) < len(met)
    sites = {studied.vlm.anatomy.site(*neuron).module for neuron in met}
    assert sites == {site.module for block in studied.vlm.anatomy.blocks for site in block.sites}
    plain = studied.forward()
    for comes, goes in [((0, 1, 2, 3), (0, 1, 2, 3)), ((3, 1, 0, 2), (2, 0, 3, 1)), ((2, 3, 1, 0), (1, 3, 0, 2))]:
        force = []
        for index in comes:
            apply(studied.vlm, edits[index])
            force.append(edits[index])
            assert active(studied.vlm) == tuple(force)
            assert studied.holds(force)
        assert not torch.equal(studied.forward(), plain)
        for index in goes:
            revert(studied.vlm, edits[index])
            force.remove(edits[index])
            assert studied.holds(force)
        assert studied.untouched()
    assert torch.equal(studied.forward(), plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_none_come_back_as_they_were(dtype):
    made = Studied(dtype=DTYPES[dtype])
    odd = {torch.float32: [0x7F812345, -0x7EDCBB, 1], torch.bfloat16: [0x7F81, -0x7F, 1]}
    odd |= {torch.float16: [0x7C01, -0x3FF, 1]}
    whole = 2 ** (8 * made.model.dtype.itemsize - 1)
    for neuron in made.edit(1).neurons:
        view = bits(made.column(*neuron).contiguous())
        view[:5] = torch.tensor([*odd[made.model.dtype], -whole, 0])
        made.column(*neuron).copy_(view.view(made.model.dtype))
    made.remember()
    edit, other = made.edit(1), made.edit(2)
    assert made.column(*edit.neurons[0])[:2].isnan().all()
    apply(made.vlm, edit)
    apply(made.vlm, other)
    revert(made.vlm, edit)
    assert made.holds([other])
    revert(made.vlm, other)
    assert made.untouched()


CROWD: dict[str, tuple[Studied, list[Edit]]] = {}


def crowd(name):
    """A model and four edits that meet, made once for all examples."""
    if name not in CROWD:
        made = Studied("qwen3_vl_moe", torch.float16) if name == "experts" else Studied("llava", DTYPES[name])
        CROWD[name] = made, [made.edit(seed, size=3, spread=0.05) for seed in range(4)]
    return CROWD[name]


class Stop(Exception):
    pass


def interleave(made, edits, steps, force):
    """Take steps: an edit comes or goes, or is in force while more steps are taken, which may end with an error."""
    for kind, index, inner in steps:
        edit = edits[index]
        if kind == "toggle":
            if edit in force:
                revert(made.vlm, edit)
                force.remove(edit)
            else:
                apply(made.vlm, edit)
                force.append(edit)
        elif edit not in force:
            force.append(edit)
            try:
                with applied(made.vlm, edit):
                    interleave(made, edits, inner, force)
                    if kind == "fail":
                        raise Stop
            except Stop:
                assert kind == "fail" or any(one[0] == "fail" for one in inner)
            if edit in force:
                force.remove(edit)
        assert active(made.vlm) == tuple(sorted(force, key=active(made.vlm).index))


toggles = st.tuples(st.just("toggle"), st.integers(0, 3), st.just(()))
steps = st.lists(
    st.one_of(
        toggles,
        st.tuples(st.sampled_from(["within", "fail"]), st.integers(0, 3), st.lists(toggles, max_size=2).map(tuple)),
    ),
    min_size=2,
    max_size=5,
)


@pytest.mark.slow
@given(name=st.sampled_from([*DTYPES, "experts"]), steps=steps, last=st.permutations(range(4)))
@settings(
    max_examples=1000,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_no_interleaving_leaves_a_trace(name, steps, last):
    made, edits = crowd(name)
    force = []
    interleave(made, edits, steps, force)
    assert made.holds(force)
    for index in last:
        if edits[index] in force:
            revert(made.vlm, edits[index])
    assert made.untouched()


def test_an_exception_inside_leaves_no_trace(llava):
    edits = [llava.edit(1), llava.edit(2)]

    def fail():
        with applied(llava.vlm, edits[0]), applied(llava.vlm, edits[1]):
            assert llava.holds(edits)
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert llava.untouched()


def test_the_edit_has_the_same_by_its_methods(llava):
    edit = llava.edit(1)
    with edit.on(llava.vlm):
        assert active(llava.vlm) == (edit,)
        assert llava.holds([edit])
    edit.apply(llava.vlm)
    assert llava.holds([edit])
    edit.revert(llava.vlm)
    assert llava.untouched()


def test_an_edit_withdrawn_inside_is_not_withdrawn_again(llava):
    edit = llava.edit(1)
    with applied(llava.vlm, edit):
        revert(llava.vlm, edit)
        assert llava.untouched()
    assert llava.untouched()


def copied(edit):
    """The same edit, as another object."""
    deltas = [Delta(one.block, one.columns.clone(), one.weights.clone(), one.directions.clone()) for one in edit.deltas]
    return Edit(tuple(deltas), edit.recipe, edit.model)


def test_an_edit_comes_once_and_goes_once(llava):
    edit = llava.edit(1)
    with pytest.raises(EditError, match="not in force"):
        revert(llava.vlm, edit)
    apply(llava.vlm, edit)
    for same in (edit, copied(edit)):
        with pytest.raises(EditError, match="in force already"):
            apply(llava.vlm, same, force=True)
        with pytest.raises(EditError, match="in force already"), applied(llava.vlm, same):
            pass
    assert llava.holds([edit])
    revert(llava.vlm, copied(edit))
    with pytest.raises(EditError, match="not in force"):
        revert(llava.vlm, edit)
    assert llava.untouched()


def test_an_edit_that_was_changed_while_in_force_goes_as_it_came(llava):
    edit = llava.edit(1)
    with applied(llava.vlm, edit):
        edit.deltas[0].directions.mul_(3)
    assert llava.untouched()


def test_neurons_that_edits_share(llava):
    one, other = llava.edit(1, spread=0.1), llava.edit(2, spread=0.1)
    common = tuple(sorted(set(one.neurons) & set(other.neurons)))
    assert common
    assert shared(llava.vlm, one) == ()
    with applied(llava.vlm, one):
        assert shared(llava.vlm, one) == ()
        assert shared(llava.vlm, other) == common
        with applied(llava.vlm, other):
            assert shared(llava.vlm, one) == shared(llava.vlm, other) == common


# what is refused


def test_edits_of_other_weights_are_refused_unless_forced(llava):
    edit = llava.edit(1)
    for about in ({"name": "other", "fingerprint": "0" * 64}, {}):
        foreign = Edit(edit.deltas, edit.recipe, about)
        with pytest.raises(EditError, match="force=True") as caught:
            apply(llava.vlm, foreign)
        assert llava.fingerprint in str(caught.value)
        assert str(about.get("fingerprint")) in str(caught.value)
        assert llava.untouched()
        with applied(llava.vlm, foreign, force=True):
            assert llava.holds([foreign])
        assert llava.untouched()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("block", "columns", "hidden", "says"),
    [
        (3, [0], 64, "there is no block 3"),
        (-1, [0], 64, "there is no block -1"),
        (1, [0, 112], 64, "units 0 to 111"),
        (1, [-1, 5], 64, "units 0 to 111"),
        (1, [0], 63, "63 entries, the stream 64"),
        (1, [0], 65, "65 entries, the stream 64"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_touched(llava, block, columns, hidden, says, force):
    good = llava.edit(1).deltas[0]
    bad = Delta.of_vectors(block, torch.tensor(columns), torch.ones(len(columns), hidden))
    deltas = (bad, good) if block < 0 else (good, bad)
    with pytest.raises(EditError, match=says):
        apply(llava.vlm, Edit(deltas, {}, {"fingerprint": llava.fingerprint}), force)
    assert llava.untouched()


def test_weights_for_other_columns_do_not_fit(llava, unchecked):
    bad = Delta(0, torch.tensor([1, 2]), torch.ones(3, 1), torch.ones(1, 64))
    with pytest.raises(EditError, match="not one for each column and direction"):
        apply(llava.vlm, Edit((bad,), {}, {}), force=True)
    assert llava.untouched()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(llava, value):
    vectors = torch.ones(2, 64)
    vectors[1, 3] = value
    with pytest.raises(EditError, match="not finite"):
        apply(llava.vlm, Edit((Delta.of_vectors(0, torch.tensor([1, 2]), vectors),), {}, {}), force=True)
    assert llava.untouched()


def test_weights_that_half_precision_cannot_hold_are_refused():
    made = Studied(dtype=torch.float16)
    vectors = torch.ones(2, 64)
    vectors[1, 3] = 1e5
    edit = Edit((Delta.of_vectors(0, torch.tensor([1, 7]), vectors),), {}, {"fingerprint": made.fingerprint})
    with pytest.raises(EditError, match=r"L0\.u7 would be too large for float16"):
        apply(made.vlm, edit)
    assert made.untouched()


def test_weights_of_another_shape_than_measured_are_refused(own):
    edit = own.edit(1)
    module = own.model.get_submodule(own.vlm.anatomy.blocks[0].sites[0].module)
    module.weight = nn.Parameter(torch.zeros(64, 200))
    own.remember()
    with pytest.raises(EditError, match="no longer of the shape"):
        apply(own.vlm, edit, force=True)
    assert own.untouched()


# writes from outside


def flip(studied, neuron):
    """Change one bit of an edited column, and say how to change it back."""
    name, where = studied.place(*neuron)
    view = bits(studied.tensors()[name])[where]
    view[5] ^= 1
    return lambda: view[5].bitwise_xor_(1)


def test_a_write_from_outside_stops_everything_and_loses_nothing(studied):
    edit, other = studied.edit(1), studied.edit(2)
    apply(studied.vlm, edit)
    neuron = edit.neurons[-1]
    back = flip(studied, neuron)
    written = {name: bits(weight).clone() for name, weight in studied.tensors().items()}
    name = studied.vlm.anatomy.name(*neuron)
    for act in (
        lambda: apply(studied.vlm, other),
        lambda: apply(studied.vlm, other, force=True),
        lambda: revert(studied.vlm, edit),
        lambda: base_fingerprint(studied.vlm),
    ):
        with pytest.raises(EditError, match="from outside") as caught:
            act()
        assert str(caught.value).startswith(f"{name}: ")
        assert "load the model anew" in str(caught.value)
        assert active(studied.vlm) == (edit,)
        assert all(torch.equal(bits(weight), written[name]) for name, weight in studied.tensors().items())
    back()
    assert studied.holds([edit])
    revert(studied.vlm, edit)
    assert studied.untouched()


def test_a_write_from_outside_is_noticed_on_leaving(llava):
    edit, back = llava.edit(1), []

    def fail():
        with applied(llava.vlm, edit):
            back.extend(flip(llava, neuron) for neuron in edit.neurons[:2])
            raise Stop

    with pytest.raises(EditError, match="from outside") as caught:
        fail()
    assert isinstance(caught.value.__context__, Stop)
    assert "and 1 more" in str(caught.value)
    assert active(llava.vlm) == (edit,)
    for one in back:
        one()
    revert(llava.vlm, edit)
    assert llava.untouched()


def test_other_columns_may_be_written_to(own):
    edit = own.edit(1)
    free = next(column for column in range(112) if (0, column) not in edit.neurons)
    apply(own.vlm, edit)
    with torch.no_grad():
        own.column(0, free).add_(1)
        own.model.lm_head.weight.add_(1)
    revert(own.vlm, edit)
    expected = {own.place(0, free)[0], "lm_head.weight"}
    assert own.changed() == expected
    assert own.count_hooks() == own.hooks
    with torch.no_grad():
        own.column(0, free).copy_(own.weights[own.place(0, free)[0]].view(torch.float32)[:, free])
        own.model.lm_head.weight.copy_(own.weights["lm_head.weight"].view(torch.float32))
    assert own.untouched()


def test_a_converted_model_keeps_its_edit_until_it_is_converted_back(own):
    edit = own.edit(1)
    apply(own.vlm, edit)
    own.model.to(torch.float64)
    for act in (lambda: revert(own.vlm, edit), lambda: apply(own.vlm, own.edit(2), force=True)):
        with pytest.raises(EditError, match="was converted, replaced or sent elsewhere"):
            act()
    own.model.to(torch.float32)
    assert own.holds([edit])
    revert(own.vlm, edit)
    assert own.untouched()


def test_a_weight_that_was_replaced_by_an_equal_one_is_edited_on(own):
    edit = own.edit(1)
    module = own.model.get_submodule(own.vlm.anatomy.blocks[0].sites[0].module)
    apply(own.vlm, edit)
    module.weight = nn.Parameter(module.weight.detach().clone())
    revert(own.vlm, edit)
    assert own.untouched()


# what happens in the middle


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("broken", ["_write", "_banned", "_commit"])
def test_an_exception_in_the_middle_leaves_everything_as_before(llava, monkeypatch, broken, error):
    first, second = llava.edit(1, banned=((5, 6),)), llava.edit(2)
    before = llava.model.generation_config.bad_words_ids
    real = getattr(stack, broken)

    def failing(count):
        calls = iter(range(1000))

        def fail(*args):
            if next(calls) == count:
                raise error("in the middle")
            return real(*args)

        monkeypatch.setattr(stack, broken, fail)

    for count in range(2 if broken == "_write" else 1):
        failing(count)
        with pytest.raises(error, match="in the middle"):
            apply(llava.vlm, first)
        monkeypatch.setattr(stack, broken, real)
        assert llava.untouched()
        assert llava.model.generation_config.bad_words_ids is before
    apply(llava.vlm, first)
    banned = llava.model.generation_config.bad_words_ids
    for act, force in [(lambda: apply(llava.vlm, second), [first]), (lambda: revert(llava.vlm, first), [first])]:
        failing(0)
        with pytest.raises(error, match="in the middle"):
            act()
        monkeypatch.setattr(stack, broken, real)
        assert llava.holds(force)
        assert active(llava.vlm) == (first,)
        assert llava.model.generation_config.bad_words_ids == banned
    revert(llava.vlm, first)
    assert llava.untouched()
    assert llava.model.generation_config.bad_words_ids is before


def test_nothing_is_recorded_for_derivatives(own):
    site = own.vlm.anatomy.blocks[0].sites[0]
    weight = own.model.get_submodule(site.module).weight
    other = own.model.get_submodule(own.vlm.anatomy.blocks[1].sites[0].module).weight
    other.requires_grad_(False)
    own.model(**own.inputs).logits.sum().backward()
    gradient, version = weight.grad, weight._version
    kept = gradient.clone()
    with applied(own.vlm, own.edit(1)):
        assert weight._version > version
        for one, asked in ((weight, True), (other, False)):
            assert one.requires_grad is asked
            assert one.is_leaf
            assert one.grad_fn is None
        assert weight.grad is gradient
        own.model(**own.inputs).logits.sum().backward()
    assert weight.grad is gradient
    assert not torch.equal(gradient, kept)
    assert other.grad is None
    assert own.untouched()


def test_inference_mode_is_no_obstacle(own):
    edit, other = own.edit(1), own.edit(2)
    with torch.inference_mode():
        apply(own.vlm, edit)
        with applied(own.vlm, other):
            assert own.holds([edit, other])
        assert own.holds([edit])
    # and weights that were made in it
    revert(own.vlm, edit)
    with torch.inference_mode():
        name = own.vlm.anatomy.blocks[0].sites[0].module
        module = own.model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
    with applied(own.vlm, edit), applied(own.vlm, other):
        assert own.holds([edit, other])
    assert own.untouched()


def test_a_model_is_not_kept_alive():
    made = Studied()
    apply(made.vlm, made.edit(1, banned=((3,),)))
    base_fingerprint(made.vlm)
    gone = weakref.ref(made.model)
    del made
    gc.collect()
    assert gone() is None


def test_blocks_that_share_a_weight_share_its_edits(own):
    one, other = (own.model.get_submodule(own.vlm.anatomy.blocks[index].sites[0].module) for index in (0, 1))
    other.weight = one.weight
    own.remember()
    vectors = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([4, 9])
    about = {"fingerprint": own.fingerprint}
    edits = [
        Edit((Delta.of_vectors(0, columns, vectors[0]), Delta.of_vectors(1, columns, vectors[1])), {}, about),
        Edit((Delta.of_vectors(1, columns, vectors[2]),), {}, about),
    ]
    apply(own.vlm, edits[1])
    apply(own.vlm, edits[0])
    assert own.changed() == {f"{own.vlm.anatomy.blocks[0].sites[0].module}.weight"}
    total = own.weights[next(iter(own.changed()))].view(torch.float32)[:, columns].T
    for edit in sorted(edits, key=lambda edit: edit.edit_id):
        for delta in edit.deltas:
            total = total + delta.vectors
    assert torch.equal(one.weight[:, columns].T, total)
    revert(own.vlm, edits[1])
    assert base_fingerprint(own.vlm) == own.fingerprint
    revert(own.vlm, edits[0])
    assert own.untouched()


# the fingerprint of the base


def count_fingerprints(monkeypatch):
    taken = []
    monkeypatch.setattr(stack, "fingerprint", lambda model: taken.append(fingerprint(model)) or taken[-1])
    return taken


def test_the_fingerprint_is_the_bases_and_is_read_once(studied, monkeypatch):
    taken = count_fingerprints(monkeypatch)
    first, second = studied.edit(1), studied.edit(2)
    stack._STATES.pop(studied.model, None)
    assert base_fingerprint(studied.vlm) == studied.fingerprint
    for _ in range(2):
        with applied(studied.vlm, first):
            assert base_fingerprint(studied.vlm) == studied.fingerprint
            assert fingerprint(studied.model) != studied.fingerprint
            with applied(studied.vlm, second):
                assert base_fingerprint(studied.vlm) == studied.fingerprint
    assert base_fingerprint(studied.vlm) == studied.fingerprint
    assert len(taken) == 1


def test_the_fingerprint_is_the_bases_when_it_is_first_asked_for_under_edits(studied, monkeypatch):
    stack._STATES.pop(studied.model, None)
    with applied(studied.vlm, studied.edit(1), force=True), applied(studied.vlm, studied.edit(2), force=True):
        written = {name: weight._version for name, weight in studied.tensors().items()}
        taken = count_fingerprints(monkeypatch)
        assert base_fingerprint(studied.vlm) == studied.fingerprint
        assert base_fingerprint(studied.vlm) == studied.fingerprint
        assert len(taken) == 1
        # reading is not writing
        assert written == {name: weight._version for name, weight in studied.tensors().items()}
    assert studied.untouched()


def add_to_one(weight):
    with torch.no_grad():
        weight[0, 1] += 1


def add_to_data(weight):
    weight.data += 1


def other_data(weight):
    weight.data = weight.data + 1


@pytest.mark.parametrize("write", [add_to_one, add_to_data, other_data])
@pytest.mark.parametrize("inside", [False, True])
def test_the_fingerprint_follows_what_others_write(own, write, inside):
    edit = own.edit(1)
    assert base_fingerprint(own.vlm) == own.fingerprint
    if inside:
        apply(own.vlm, edit)
    write(own.model.lm_head.weight)
    seen = base_fingerprint(own.vlm)
    assert seen != own.fingerprint
    with pytest.raises(EditError, match="fingerprint"):
        apply(own.vlm, own.edit(2))
    if inside:
        revert(own.vlm, edit)
    assert seen == fingerprint(own.model)
    assert base_fingerprint(own.vlm) == seen


def test_the_fingerprint_follows_what_others_write_beside_edited_columns(own):
    edit = own.edit(1)
    free = next(column for column in range(112) if (0, column) not in edit.neurons)
    for force in (False, True):
        seen = base_fingerprint(own.vlm)
        with torch.no_grad():
            own.column(0, free)[7] += 1
        # our own write to the same weight must not hide it
        if force:
            apply(own.vlm, edit, force)
            assert base_fingerprint(own.vlm) != seen
        else:
            with applied(own.vlm, edit, force=True):
                pass
            assert base_fingerprint(own.vlm) == fingerprint(own.model) != seen


def test_the_fingerprint_follows_a_weight_that_was_replaced(own):
    before = base_fingerprint(own.vlm)
    own.model.lm_head.weight = nn.Parameter(own.model.lm_head.weight.detach().clone())
    assert base_fingerprint(own.vlm) == before
    own.model.lm_head.weight = nn.Parameter(own.model.lm_head.weight.detach() + 1)
    assert base_fingerprint(own.vlm) == fingerprint(own.model) != before


def test_the_fingerprint_follows_a_conversion_there_and_back(own):
    assert base_fingerprint(own.vlm) == own.fingerprint
    own.model.to(torch.bfloat16).to(torch.float32)
    assert base_fingerprint(own.vlm) == fingerprint(own.model) != own.fingerprint


# where weights cannot be written to


def reference(family, edits, neurons=()):
    """The logits of the same model with the edits in its weights."""
    made = Studied(family)
    for edit in edits:
        apply(made.vlm, edit)
    with zeroed(made.vlm, neurons):
        return made.forward()


def close(found, expected):
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-5 * scale


def offload(model, where, folder):
    import accelerate

    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_edited_by_what_they_give(layout, where, tmp_path):
    made = Studied(layout)
    edits = [made.edit(1), made.edit(2)]
    offload(made.model, where, tmp_path)
    hooks = made.count_hooks()
    plain = made.forward()
    assert base_fingerprint(made.vlm) == made.fingerprint
    apply(made.vlm, edits[0])
    apply(made.vlm, edits[1])
    assert active(made.vlm) == tuple(edits)
    assert made.count_hooks() > hooks
    close(made.forward(), reference(layout, edits))
    assert float((made.forward() - plain).abs().max()) > 1e-2
    assert base_fingerprint(made.vlm) == made.fingerprint
    with zeroed(made.vlm, edits[0].neurons):
        close(made.forward(), reference(layout, edits, edits[0].neurons))
    revert(made.vlm, edits[0])
    close(made.forward(), reference(layout, edits[1:]))
    revert(made.vlm, edits[1])
    assert made.count_hooks() == hooks
    assert torch.equal(made.forward(), plain)


@pytest.mark.parametrize("chunk", [3, 256])
def test_what_is_added_follows_activations_that_are_changed(layout, chunk, monkeypatch):
    made = Studied(layout)
    edits = [made.edit(1), made.edit(2)]
    expected = [reference(layout, edits, neurons) for neurons in ((), edits[0].neurons)]
    monkeypatch.setattr(stack, "writable", lambda vlm, site: None)
    monkeypatch.setattr(stack, "_CHUNK", chunk)
    with applied(made.vlm, edits[0]), applied(made.vlm, edits[1]):
        assert not made.changed()
        close(made.forward(), expected[0])
        with zeroed(made.vlm, edits[0].neurons):
            close(made.forward(), expected[1])
    assert made.untouched()


def test_whoever_listened_before_hears_the_edited_site(own, tmp_path):
    edit, heard = own.edit(1), []
    module = own.model.get_submodule(own.vlm.anatomy.blocks[0].sites[0].module)
    offload(own.model, "cpu", tmp_path)
    module.register_forward_hook(lambda _module, args, output: heard.append((args[0], output)))
    own.forward()
    with applied(own.vlm, edit):
        own.forward()
    (z, plain), (again, edited) = heard
    assert torch.equal(z, again)
    delta = edit.deltas[0]
    torch.testing.assert_close(edited - plain, z[..., delta.columns] @ delta.vectors, rtol=1e-4, atol=1e-4)


def test_a_weight_that_is_made_of_others_is_edited_by_what_it_gives(own):
    class Doubled(nn.Module):
        def forward(self, weight):
            return weight * 1.0

    edit = own.edit(1)
    site = own.vlm.anatomy.blocks[0].sites[0].module
    nn.utils.parametrize.register_parametrization(own.model.get_submodule(site), "weight", Doubled())
    hooks = own.count_hooks()
    with applied(own.vlm, edit, force=True):
        assert own.count_hooks() == hooks + 1
        close(own.forward(), reference("llava", [edit]))
    assert own.count_hooks() == hooks


def test_an_exception_in_the_middle_takes_hooks_off(own, tmp_path, monkeypatch):
    edit = own.edit(1)
    offload(own.model, "cpu", tmp_path)
    hooks, plain = own.count_hooks(), own.forward()
    real = stack._commit

    def fail(*args):
        raise Stop

    monkeypatch.setattr(stack, "_commit", fail)
    with pytest.raises(Stop):
        apply(own.vlm, edit)
    assert own.count_hooks() == hooks
    monkeypatch.setattr(stack, "_commit", real)
    apply(own.vlm, edit)
    edited = own.forward()
    monkeypatch.setattr(stack, "_commit", fail)
    with pytest.raises(Stop):
        revert(own.vlm, edit)
    monkeypatch.setattr(stack, "_commit", real)
    assert active(own.vlm) == (edit,)
    assert torch.equal(own.forward(), edited)
    revert(own.vlm, edit)
    assert torch.equal(own.forward(), plain)


def test_an_offloaded_edited_weight_is_not_lost(own, tmp_path):
    edit = own.edit(1)
    apply(own.vlm, edit)
    offload(own.model, "cpu", tmp_path)
    with pytest.raises(EditError, match="sent elsewhere"):
        revert(own.vlm, edit)
    from accelerate.hooks import remove_hook_from_submodules

    remove_hook_from_submodules(own.model)
    revert(own.vlm, edit)
    assert not own.changed()


def test_a_hook_does_not_stand_in_the_way_of_derivatives(own, tmp_path):
    from accelerate import cpu_offload

    edit = own.edit(1)
    expected = None
    for elsewhere in (False, True):
        if elsewhere:
            cpu_offload(own.model, execution_device=torch.device("cpu"))
        grown = {}

        def grow(_module, args, grown=grown):
            grown["z"] = args[0].detach().requires_grad_()
            return (grown["z"],)

        module = own.model.get_submodule(own.vlm.anatomy.blocks[-1].sites[0].module)
        with torch.inference_mode():
            apply(own.vlm, edit)
            own.model(**own.inputs)
        handle = module.register_forward_pre_hook(grow)
        logits = own.model(**own.inputs).logits
        (found,) = torch.autograd.grad(logits[0, -1, 7], grown["z"])
        handle.remove()
        revert(own.vlm, edit)
        expected = found if expected is None else expected
        close(found, expected)


def test_a_copy_of_a_model_keeps_what_its_hooks_add(own, tmp_path):
    edit = own.edit(1)
    offload(own.model, "cpu", tmp_path)
    block = edit.deltas[0].block
    module = own.model.get_submodule(own.vlm.anatomy.blocks[block].sites[0].module)
    given = torch.randn(1, 3, module.in_features, generator=torch.Generator().manual_seed(0))
    with applied(own.vlm, edit), torch.no_grad():
        edited = module(given)
        (hook,) = copy.deepcopy(module._forward_hooks).values()
    with torch.no_grad():
        plain = module(given)
    assert not torch.equal(plain, edited)
    close(hook(module, (given,), {}, plain), edited)


class Quantised:
    """A tiny model whose language model's maps are quantised as a loader does it."""

    def __init__(self, name, folder):
        made = Studied("wide")
        made.model.save_pretrained(folder)
        self.inputs = made.inputs
        self.model = type(made.model).from_pretrained(
            folder, quantization_config=self.settings(name), device_map="cpu", dtype=torch.float32
        )
        self.vlm = mmn.wrap(self.model.eval())
        # some numbers are packed anew by the first runs
        self.forward()
        self.edit = made.edit(1, scale=0.1)

    @staticmethod
    def settings(name):
        if name == "torchao int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return tf.TorchAoConfig(Int8WeightOnlyConfig())
        if name == "quanto int8":
            return tf.QuantoConfig(weights="int8")
        return tf.BitsAndBytesConfig(
            load_in_8bit=name == "bitsandbytes int8",
            load_in_4bit=name == "bitsandbytes nf4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        )

    def forward(self):
        with torch.no_grad():
            return self.model(**self.inputs, use_cache=False).logits.float()


LOADERS = {"bitsandbytes nf4": "bitsandbytes", "bitsandbytes int8": "bitsandbytes", "torchao int8": "torchao"}
LOADERS |= {"quanto int8": "optimum"}


@pytest.fixture(params=LOADERS)
def quantised(request, tmp_path):
    pytest.importorskip(LOADERS[request.param])
    return Quantised(request.param, tmp_path)


def test_what_quantised_weights_get_is_not_rounded(quantised, monkeypatch):
    """A hook adds it; there is no column of theirs to round it with."""
    monkeypatch.setattr("mmneurons.edits.solution.dtype", lambda *_: torch.bfloat16)
    for delta, added in zip(quantised.edit.deltas, live(quantised.vlm, quantised.edit.deltas), strict=True):
        assert torch.equal(added.vectors, delta.vectors)


def test_quantised_weights_are_edited_by_what_they_give(quantised):
    vlm, edit = quantised.vlm, quantised.edit
    assert vlm.quantised
    plain = quantised.forward()
    changes = [
        Change(one.block, one.columns, torch.ones(len(one.columns)), torch.zeros(len(one.columns)), noise=one.vectors)
        for one in edit.deltas
    ]
    with changed(vlm, changes, ALL, lambda: 1):
        expected = quantised.forward()
    block, site = edit.deltas[0].block, vlm.anatomy.blocks[edit.deltas[0].block].sites[0]
    units = edit.deltas[0].columns.tolist()
    before = columns(vlm.model, site, units)
    with applied(vlm, edit, force=True):
        found = quantised.forward()
        after = columns(vlm.model, site, units)
    assert block == 0
    assert float((expected - plain).abs().max()) > 0.1
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(after - before, edit.deltas[0].vectors, rtol=1e-3, atol=1e-3)
    assert torch.equal(quantised.forward(), plain)


def test_quantised_weights_have_a_fingerprint_or_it_is_said_that_they_have_none(quantised):
    vlm, edit = quantised.vlm, quantised.edit
    try:
        own = fingerprint(vlm.model)
    except NotImplementedError:
        with pytest.raises(EditError, match="stored in a way that has no fingerprint"):
            apply(vlm, edit)
        return
    assert base_fingerprint(vlm) == own
    fitting = Edit(edit.deltas, edit.recipe, {"fingerprint": own})
    with applied(vlm, fitting):
        assert active(vlm) == (fitting,)
        assert base_fingerprint(vlm) == own


# banned words


def test_tokens_that_there_are_not_cannot_be_banned(llava):
    count = llava.model.config.get_text_config().vocab_size
    for banned, says in (((count,), "does not have"), ((3, count + 7), "does not have"), ((-1,), "below 0")):
        with pytest.raises(EditError, match=says):
            apply(llava.vlm, llava.edit(1, banned=((5,), banned)), force=True)
    assert llava.untouched()
    with applied(llava.vlm, llava.edit(1, banned=((count - 1,),))):
        assert llava.model.generation_config.bad_words_ids[-1] == [count - 1]


def test_banned_words_are_added_to_what_is_banned_and_taken_away_again(llava):
    config = llava.model.generation_config
    one, other = llava.edit(1, banned=((5, 6), (7,))), llava.edit(2, banned=((9,),))
    for before in (None, [], [[3]], [[5, 6], [8]]):
        config.bad_words_ids = before
        kept = copy.deepcopy(before)
        apply(llava.vlm, one)
        assert config.bad_words_ids == [*(before or []), [5, 6], [7]]
        apply(llava.vlm, other)
        added = [[5, 6], [7], [9]] if one.edit_id < other.edit_id else [[9], [5, 6], [7]]
        assert config.bad_words_ids == [*(before or []), *added]
        revert(llava.vlm, one)
        assert config.bad_words_ids == [*(before or []), [9]]
        revert(llava.vlm, other)
        assert config.bad_words_ids is before
        assert before == kept
    config.bad_words_ids = None
    assert llava.untouched()


def test_a_banned_word_is_not_said(llava):
    def said():
        return llava.model.generate(**llava.inputs, max_new_tokens=4, do_sample=False)[0].tolist()

    plain = said()
    ban = Edit((), {}, {"fingerprint": llava.fingerprint}, banned=((plain[-4],),))
    with applied(llava.vlm, ban):
        assert active(llava.vlm) == (ban,)
        assert plain[-4] not in said()[-4:]
    assert said() == plain


def test_bans_count_where_generation_looks_for_them():
    made = Studied("blip-2/opt")
    said = made.model.generate(**made.inputs, max_new_tokens=1, do_sample=False)
    ban = Edit((), {}, {"fingerprint": made.fingerprint}, banned=((int(said[0, -1]),),))
    with applied(made.vlm, ban):
        assert made.model.generate(**made.inputs, max_new_tokens=1, do_sample=False)[0, -1] != said[0, -1]
    assert torch.equal(made.model.generate(**made.inputs, max_new_tokens=1, do_sample=False), said)


def test_settings_that_others_change_meanwhile_are_not_lost(llava):
    config = llava.model.generation_config
    ban = Edit((), {}, {"fingerprint": llava.fingerprint}, banned=((5,),))
    with pytest.raises(EditError, match="bad_words_ids"), applied(llava.vlm, ban):
        config.bad_words_ids.append([6])
    assert config.bad_words_ids == [[5], [6]]
    with pytest.raises(EditError, match=r"Put back \[\[5\]\]"):
        apply(llava.vlm, llava.edit(1))
    config.bad_words_ids = [[5]]
    revert(llava.vlm, ban)
    assert config.bad_words_ids is None
    assert llava.untouched()


@pytest.mark.parametrize("banned", [((),), ((5, -1),)])
def test_sequences_that_nobody_can_say_are_refused(llava, banned):
    with pytest.raises(EditError, match="bans"):
        apply(llava.vlm, llava.edit(1, banned=banned))
    assert llava.untouched()


def test_a_model_that_does_not_generate_bans_nothing(own):
    own.model.generation_config = None
    with pytest.raises(EditError, match="no settings of generation"):
        apply(own.vlm, own.edit(1, banned=((5,),)))
    with applied(own.vlm, own.edit(1)):
        pass
    assert own.untouched()
