"""The table of families is what their tests have shown. ``MMN_PROVED=write`` writes it anew."""

import json
import os
from pathlib import Path

import pytest

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.vlm.decoding import family_of
from mmneurons.vlm.families import proved as module
from mmneurons.vlm.families.proved import PROPERTIES, RESULTS, page, proved

pytestmark = pytest.mark.families

FILE = Path(module.__file__).with_name(RESULTS)
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WRITE = os.environ.get("MMN_PROVED") == "write"


def shown(outcomes, name: str) -> dict[str, str]:
    case = FAMILIES[name]()
    vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
    experts = any(site.experts for block in vlm.anatomy.blocks for site in block.sites)
    properties = {}
    for what in PROPERTIES:
        seen = set(outcomes.get((name, what), ["absent"]))
        if what == "experts":
            properties[what] = "yes" if experts else "–"
        elif what == "heatmaps" and seen == {"absent"} and (vlm.is_encoder_decoder or _unplaced(vlm)):
            properties[what] = "–"
        elif what == "heatmaps" and set(outcomes.get((name, "whole"), [])) == {"passed"}:
            properties[what] = "whole"
        elif "failed" in seen:
            properties[what] = "failed"
        else:
            properties[what] = "yes" if seen == {"passed"} else "no"
    return properties


def _unplaced(vlm) -> bool:
    """Whether the decoder has no image tokens."""
    return family_of(vlm).image_tokens == "none"


def test_the_table_is_what_the_tests_have_shown(outcomes, whole):
    if not whole:
        pytest.skip("only with the tests of all families, in one process: pytest tests/families")
    results = {name: shown(outcomes, name) for name in FAMILIES}
    assert not [name for name, properties in results.items() if "failed" in properties.values()]
    if WRITE:
        FILE.write_text(json.dumps({"families": results}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        PAGE.write_text(page(), encoding="utf-8")
    assert {family.name: family.properties for family in proved()} == results
    assert PAGE.read_text(encoding="utf-8") == page()
    assert all(properties["scores"] == "yes" for properties in results.values())
