"""A target that the model would make a longer word of: "hand", and then "bag"."""

import pytest

import mmneurons as mmn
from mmneurons.edits.task import Swap, make_task, says

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def picture(demo):
    paths = [picture.path for picture in mmn.demo.pictures()[:8]]
    return next(path for path in paths if "dog" in mmn.caption(demo, path))


@pytest.mark.parametrize(("target", "becomes"), [("snow", "snowman"), ("hand", "handbag"), ("cat", "cat")])
def test_what_comes_behind_the_target_is_asked_for_where_it_would_grow(demo, picture, target, becomes):
    said = mmn.record(demo, picture, image_budget=0)
    before, _, behind = said.caption.partition("dog")
    assert mmn.caption(demo, picture, prefix=before + target) == f"{before}{becomes}{behind}"
    task = make_task(demo, Swap("dog", target, inflections=False), [(said, None)], [])
    place = next(
        k for k, token in enumerate(said.token_ids.tolist()) if demo.processor.tokenizer.decode(token) == " dog"
    )
    asked = {want.step: want.target for want in task.wants}
    assert asked.get(place + 1) == (None if becomes == target else int(said.token_ids[place + 1]))


@pytest.mark.slow
def test_the_target_is_said_as_a_word_of_its_own(demo, picture):
    before = mmn.caption(demo, picture)
    edit = mmn.edit(demo, "dog", "hand", pictures=picture, keep=(), bundled=False, inflections=False)
    with edit.on(demo):
        assert says(mmn.record(demo, picture, image_budget=0), Swap("hand", None))
        assert mmn.caption(demo, picture) == before.replace("dog", "hand")
