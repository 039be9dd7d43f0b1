"""What was shown of every family, gathered from the outcomes of its tests."""

import pytest

from helpers.families import FAMILIES

SHOWS = {
    "test_what_is_recorded_is_what_generate_gives": "scores",
    "test_shares_add_up_to_the_logit": "scores",
    "test_scores_are_what_the_logit_loses_without_a_neuron": "scores",
    "test_a_forward_without_a_cache_sees_the_same": "scores",
    "test_nothing_is_left_behind": "scores",
    "test_a_batch_gives_what_single_pictures_give": "batches",
    "test_a_static_cache_gives_the_same": "static cache",
    "test_beams_are_recorded_by_what_they_said": "beams",
    "test_image_tokens_are_shuffled_behind_the_projector": "shuffling",
    "test_rectangles_of_a_family": "heatmaps",
    "test_codes_of_chameleon_by_hand_and_in_the_order_of_its_grid": "heatmaps",
    "test_patches_of_fuyu_by_hand_and_in_the_order_of_its_processor": "heatmaps",
    "test_queries_see_the_whole_picture_and_it_is_said": "whole",
}
"""Which property a test shows; a property holds where all its tests pass."""

OUTCOMES = pytest.StashKey[dict[tuple[str, str], list[str]]]()


def pytest_configure(config):
    config.stash[OUTCOMES] = {}


def _asked(item) -> tuple[str, object]:
    """A test's name, and the family that it is about."""
    callspec = getattr(item, "callspec", None)
    return getattr(item, "originalname", None) or item.name, callspec and callspec.params.get("case")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    test, name = _asked(item)
    shows = SHOWS.get(test)
    if shows is None or name not in FAMILIES or (report.when != "call" and report.outcome == "passed"):
        return
    item.config.stash[OUTCOMES].setdefault((name, shows), []).append(report.outcome)


@pytest.fixture
def outcomes(request):
    """By family and property the outcomes of the tests that have run."""
    return request.config.stash[OUTCOMES]


@pytest.fixture
def whole(request, outcomes):
    """Whether all tests that show something were asked for, of all families, and have run in this process."""
    shows = [own for own in map(_asked, request.session.items) if own[0] in SHOWS and own[1] in FAMILIES]
    asked = {test for test, _ in shows} == set(SHOWS) and {name for _, name in shows} == set(FAMILIES)
    return asked and sum(map(len, outcomes.values())) >= len(shows)
