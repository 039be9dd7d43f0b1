"""Figures: what stands on them, that it is text, that equal input gives equal bytes, and that nothing breaks them."""

import logging
import subprocess
import sys
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from mmneurons.errors import AnatomyError, ExtraMissingError, OptionError
from mmneurons.heatmaps import Heatmap
from mmneurons.reports.figures import WordPanel, figure, panel_of, save_figure
from mmneurons.table import NeuronRow
from mmneurons.vlm.geometry import Geometry, ImageGrid

HOSTILE = (
    "$a_b$",
    "\\frac{1}{2}",
    "<script>&amp;",
    "]]>",
    "\x00\x1b[31m",
    "\n\n",
    "猫",
    "שלום",
    "😀👩‍👧",
    "\u202eabc",
    "\ud800",
    "\ufffe",
    "",
)


def panel(size=(96, 64), neurons=3, maps=True, **changes):
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    grid = ImageGrid(2, 3, (0.0, 0.0, float(size[0]), float(size[1])), np.arange(6).reshape(2, 3))
    geometry = Geometry(size, 6, (grid,))
    rows = tuple(
        NeuronRow(rank, f"L{rank}.u{100 + rank}", rank, 100 + rank, 2.5 / (rank + 1), 0.125, -3.0, ("dog", "puppy"))
        for rank in range(neurons)
    )
    looks = tuple(Heatmap(draw.normal(size=6).astype(np.float32), geometry) for _ in rows) if maps else ()
    made = WordPanel(picture, "An image of a dog and a ball.", (14, 17), "dog", rows, looks, "the raw logit")
    return replace(made, **changes)


def texts(drawn):
    return [text.get_text() for text in drawn.texts]


def labels(drawn, kind):
    return [axes for axes in drawn.axes if axes.get_label().split()[0] == kind]


def saved_texts(drawn, tmp_path):
    """The lines of the SVG's text elements; parsing fails where it is no XML."""
    svg, _ = save_figure(drawn, tmp_path / "figure")
    return [element.text for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("neurons", [1, 4, 5, 6, 10])
def test_what_stands_on_it(neurons):
    drawn = figure(panel(neurons=neurons))
    assert len(labels(drawn, "map")) == neurons
    assert len(labels(drawn, "picture")) == len(labels(drawn, "scale")) == 1
    said = texts(drawn)
    for rank in range(neurons):
        assert f"L{rank}.u{100 + rank}" in said
        assert f"{2.5 / (rank + 1):.3g}, 12.5%" in said
    assert said.count("dog, puppy") == neurons
    assert any("the raw logit" in line for line in said)


def test_the_word_alone_is_bold_in_the_caption():
    drawn = figure(panel())
    bold = [text.get_text() for text in drawn.texts if text.get_weight() == "bold"]
    assert bold.count("dog") == 2  # the heading, and in the caption
    assert "".join(text for text in texts(drawn)[1:5]).startswith("An image of a dog and a")
    assert {"L0.u100", "L1.u101", "L2.u102"} < set(bold)


def test_a_map_is_the_overlay_and_its_range_is_stated():
    """At a size of its own in pixels, the image that is drawn is what the heatmap itself paints over the picture."""
    plain = panel(size=(450, 300), neurons=1)
    drawn = figure(plain)
    (axes,) = labels(drawn, "map")
    image = np.asarray(axes.images[0].get_array())
    assert image.shape == (300, 450, 3)
    expected = plain.maps[0].overlay(plain.picture, legend=False)
    assert np.array_equal(image, np.asarray(expected))
    values = plain.maps[0].map()
    assert f"{values.min():.3g} to {values.max():.3g}".replace("-", "−") in texts(drawn)


@pytest.mark.parametrize("spelt_out", [False, True])
def test_a_map_stays_where_it_is_when_the_picture_is_resized(spelt_out):
    """The one bright token is the lower right of six: its sixth of the drawn map holds the yellowest place."""
    plain = panel(size=(900, 600), neurons=1)
    grid = plain.maps[0].geometry.grids[0]
    if spelt_out:
        grid = replace(grid, x_spans=grid.spans()[0], y_spans=grid.spans()[1])
    geometry = replace(plain.maps[0].geometry, grids=(grid,))
    look = replace(plain.maps[0], values=np.array([0, 0, 0, 0, 0, 1], dtype=np.float32), geometry=geometry)
    (axes,) = labels(figure(replace(plain, picture=Image.new("RGB", (900, 600), "gray"), maps=(look,))), "map")
    image = np.asarray(axes.images[0].get_array()).astype(int)
    yellow = image[..., 0] - image[..., 2]
    row, column = np.argwhere(yellow == yellow.max()).mean(0) / image.shape[:2]
    assert row > 1 / 2
    assert column > 2 / 3


def test_masks_leave_a_twentieth_of_the_picture():
    plain = panel(size=(450, 300), neurons=2, picture=Image.new("RGB", (450, 300), "white"))
    drawn = figure(plain, masks=True)
    shown = [np.asarray(axes.images[0].get_array()) == 255 for axes in labels(drawn, "mask")]
    assert len(shown) == 2
    for kept in shown:
        assert kept.mean() == pytest.approx(0.05, abs=0.002)
    assert any("95th percentile" in line for line in texts(drawn))


def test_rows_without_a_map():
    some = panel(neurons=3)
    some = replace(some, maps=(None, some.maps[1]))
    drawn = figure(some)
    assert [axes.get_label() for axes in labels(drawn, "map")] == ["map 1"]
    assert len(labels(drawn, "no")) == 2
    without = figure(panel(maps=False))
    assert [axes.get_label() for axes in without.axes] == ["picture"]
    assert "L2.u102" in texts(without)
    assert without.get_figheight() < drawn.get_figheight()


def test_what_no_token_sees_is_named():
    plain = panel()
    assert not any("no image token" in line for line in texts(figure(plain)))
    grid = replace(plain.maps[0].geometry.grids[0], rectangle=(0.0, 0.0, 50.0, 64.0))
    half = replace(plain.maps[0], geometry=replace(plain.maps[0].geometry, grids=(grid,)), source="second prefill")
    said = " ".join(texts(figure(replace(plain, maps=(half,)))))
    assert "dark where no image token sees the picture" in said
    assert "(second prefill)" in said


def test_equal_input_gives_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_figures as t;"
        "t.save_figure(t.figure(t.panel(neurons=2), masks=True), Path(sys.argv[2]))"
    )
    for name, seed in (("a", "1"), ("b", "2")):
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / name)]
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
        subprocess.run(command, check=True, env=environment, capture_output=True)
    for ending in (".svg", ".png"):
        first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
        assert first == second
        assert len(first) > 10_000


def test_saving_twice_gives_equal_bytes_and_other_input_others(tmp_path):
    drawn = figure(panel())
    first = [path.read_bytes() for path in save_figure(drawn, tmp_path / "new" / "dog.v1")]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["dog.v1.png", "dog.v1.svg"]
    assert first == [path.read_bytes() for path in save_figure(drawn, tmp_path / "again")]
    other = figure(panel(word="cat"))
    assert first[0] != save_figure(other, tmp_path / "other")[0].read_bytes()


def test_svg_holds_the_words_as_text(tmp_path):
    said = saved_texts(figure(panel()), tmp_path)
    assert "dog, puppy" in said
    assert "L0.u100" in said
    assert "An image of a " in said


def test_hostile_text_is_shown_as_it_is(tmp_path, caplog):
    rows = tuple(replace(row, promotes=HOSTILE, neuron="L0.u$_1$") for row in panel(neurons=2).rows)
    caption = "An $x_1$ \\alpha <b> \x00\x1b猫 😀 שלום % {0} \n dog" + "\ud800"
    hostile = panel(neurons=2, rows=rows, caption=caption, span=(3, 8), word="$\\undefined{", note="\x07 <&> $$")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        drawn = figure(hostile)
        said = saved_texts(drawn, tmp_path)
    assert not caplog.records
    assert "$\\undefined{" in said
    assert said.count("L0.u$_1$") == 2
    assert "$x_1$" in said
    together = " ".join(said)
    for shown in ("$a_b$", "\\frac{1}{2}", "<script>&amp;", "]]>", "··[31m", "猫", "😀", "·abc", "<&>"):
        assert shown in together
    assert not any(character < " " or "\ud800" <= character < "\ue000" for character in together)
    assert not drawn.get_layout_engine()


@pytest.mark.parametrize("caption", ["", "   ", "dog", "שלום כלב", "x" * 500, "word " * 400, "猫" * 200])
def test_captions(caption, tmp_path):
    drawn = figure(panel(caption=caption, span=(0, 3)))
    said = saved_texts(drawn, tmp_path)
    assert len(said) < 60
    if caption == "שלום כלב":
        assert caption in said  # whole, because its pieces cannot be set side by side from the left


def test_the_word_is_seen_in_a_long_caption():
    caption = "many words " * 60 + "dog " + "more words " * 60
    said = texts(figure(panel(caption=caption, span=(660, 663))))
    assert said.count("dog") == 2
    assert any(line.startswith("…") for line in said)
    assert any(line.endswith("…") for line in said)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (1000, 3), (3, 1000), (1200, 300), (300, 1200), (2500, 1800)])
@pytest.mark.parametrize("neurons", [1, 10])
def test_sizes(size, neurons):
    drawn = figure(panel(size=size, neurons=neurons))
    width, height = drawn.get_size_inches()
    assert width <= 7.25
    assert height <= 12
    for axes in labels(drawn, "map"):
        box = axes.get_position()
        drawn_ratio = (box.height * height) / (box.width * width)
        assert drawn_ratio == pytest.approx(size[1] / size[0], rel=1e-6)


@pytest.mark.parametrize("size", [(96, 64), (1200, 300), (300, 1200)])
@pytest.mark.parametrize("neurons", [1, 5, 7])
def test_nothing_lies_over_anything_else(size, neurons):
    """Everything that is drawn keeps to the page, and no line of text reaches into a picture or another line."""
    long = ("supercalifragilisticexpialidocious", "x" * 80, *(f"word{index}" for index in range(40)))
    plain = panel(size=size, neurons=neurons)
    rows = tuple(replace(row, promotes=long, score=-0.00123456, share=-0.00012) for row in plain.rows)
    drawn = figure(replace(plain, rows=rows, note="against the mean of 32,000 ordinary tokens; " * 5))
    renderer = drawn.canvas.get_renderer()
    width, height = renderer.get_canvas_width_height()
    lines = [text.get_window_extent(renderer) for text in drawn.texts]
    pictures = [axes.get_window_extent(renderer) for axes in drawn.axes]
    for line in [*lines, *pictures]:
        assert line.x0 >= 0
        assert line.y0 >= 0
        assert line.x1 <= width
        assert line.y1 <= height
    boxes = [*pictures, *lines]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            down = min(one.y1, other.y1) - max(one.y0, other.y0)
            # boxes of lines reach from the highest to the lowest letter of a font and may touch
            assert min(across, down) <= 6


def test_nothing_is_left_behind():
    before = dict(matplotlib.rcParams)
    filters = list(warnings.filters)
    figure(panel())
    assert dict(matplotlib.rcParams) == before
    assert warnings.filters == filters


def test_a_users_settings_change_nothing(tmp_path):
    first = save_figure(figure(panel()), tmp_path / "plain")
    theirs = {
        "font.size": 30,
        "axes.facecolor": "red",
        "savefig.bbox": "tight",
        "text.usetex": True,
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context({**theirs, "text.usetex": True}):
        second = save_figure(figure(panel()), tmp_path / "theirs")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pyplot_is_not_imported():
    code = (
        "import sys, mmneurons.reports.figures as f; assert 'matplotlib' not in sys.modules\n"
        "from PIL import Image\n"
        "f.figure(f.WordPanel(Image.new('RGB', (9, 9)), 'a dog', (2, 5), 'dog', ()))\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["False", "False"]


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    drawn = figure(panel())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for use in (lambda: figure(panel()), lambda: save_figure(drawn, tmp_path / "no")):
        with pytest.raises(ExtraMissingError, match=r"pip install 'mmneurons\[report\]'"):
            use()


def test_maps_of_another_picture_are_refused():
    plain = panel()
    with pytest.raises(OptionError, match="96 × 64 pixels, not of 50 × 64"):
        replace(plain, picture=Image.new("RGB", (50, 64)))
    with pytest.raises(OptionError, match="3 maps for 1 neurons"):
        replace(plain, rows=plain.rows[:1])


def test_a_panel_of_a_finding(vlm, picture):
    found = mmn.find(vlm, picture, words=[], max_new_tokens=4)
    word = found.at(1)
    made = panel_of(word, 4)
    assert made.rows == word.top(4).rows
    assert (made.caption, made.span, made.picture.size) == (found.caption, word.span, picture.size)
    for rank, look in enumerate(made.maps):
        assert np.array_equal(look.values, word.look(rank).values)
    assert word.note in made.note
    drawn = figure(made)
    assert len(labels(drawn, "map")) == 4
    assert [row.neuron for row in word.top(4)] == [line for line in texts(drawn) if line[:1] == "L" and ".u" in line]


def test_a_panel_of_a_family_whose_layout_is_not_known(llava, picture, monkeypatch):
    from mmneurons.vlm import families

    def fail(*_):
        raise AnatomyError("Nobody knows.")

    monkeypatch.setattr(families, "FAMILIES", {})
    monkeypatch.setattr("mmneurons.vlm.measured_layout.supports", fail)
    monkeypatch.setattr("mmneurons.vlm.geometry._found", OrderedDict())
    made = panel_of(mmn.find(llava, picture, words=[], max_new_tokens=2).at(0), 2)
    assert made.maps == ()
    assert "cannot be shown" in made.note
    assert not labels(figure(made), "map")


def test_a_panel_without_a_picture_is_refused(llava, picture):
    inputs = mmn.record(llava, picture, max_new_tokens=1).inputs
    word = mmn.find(llava, inputs=inputs, max_new_tokens=1).at(0)
    with pytest.raises(OptionError, match="no picture to draw"):
        panel_of(word)
