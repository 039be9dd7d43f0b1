"""The report in a real browser: no request, no complaint, nothing runs that should not, and it does what it says."""

import io

import numpy as np
import pytest
from PIL import Image

from mmneurons.heatmaps import Heatmap
from mmneurons.reports.html import write_report
from mmneurons.vlm.geometry import Geometry, ImageGrid
from reports.synthetic import Map, Sketch, Unit, Word, noise, units, write_run

ATTACKS = (
    "<script>window.hacked = 1; alert(1)</script>",
    "\"><img src=x onerror='window.hacked = 2'>",
    "' onmouseover='window.hacked = 3' x='",
    "</script><script>window.hacked = 4</script><!--",
    "javascript:window.hacked=5",
    "{{constructor.constructor('window.hacked=6')()}}",
    "a\x00b\x1b\u2028c",
    "safe\u202egpj.exe",
)
THINGS = ("dog", "cat", "balloon", "tree", "cup", "boat", "house")


def grid(seed, shape=(7, 7)):
    return np.random.default_rng(seed).normal(size=shape)


def word(thing, seed):
    draw = np.random.default_rng(seed)
    own = THINGS.index(thing)
    places = [(20 + own % 3, own), (23, 40 + own // 2), *((int(layer), seed) for layer in draw.integers(10, 24, 8))]
    best = tuple(
        Unit(
            layer,
            unit,
            score=3 / (rank + 1),
            activation=float(draw.normal(0, 20)),
            promotes=(thing, f"{thing}s", "pet"),
        )
        for rank, (layer, unit) in enumerate(places)
    )
    maps = [Map(grid(100 * seed + rank), rank=rank) for rank in range(9)] + [Map(grid(seed + 7000), first=9)]
    return Word(thing, best, maps, probability=0.8, total=9.0)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Twelve pictures of all shapes with two words each, one of them gone, and an error."""
    folder = tmp_path_factory.mktemp("report")
    sizes = [(400, 300), (300, 400), (320, 320), (900, 120)]
    sketches = [
        Sketch(
            f"photos/{one}-{other}-{number}.png",
            f"An image of a {one} and a {other} on a table in the late afternoon",
            [word(one, number), word(other, number + 50)],
            noise(sizes[number % 4], seed=number, grain=20),
        )
        for number in range(12)
        for one, other in [(THINGS[number % 7], THINGS[(number + 1 + number // 7) % 7])]
    ]
    sketches.append(Sketch("broken.jpg", status="error", error="PictureError: 'broken.jpg' is not a picture"))
    model = {"name": "a/model-of-tests", "class": "Tested", "blocks": 24, "width": 64, "fingerprint": "0123" * 16}
    run = write_run(folder, sketches, shard=5, model=model)
    (folder / sketches[5].source).unlink()
    return write_report(run, folder / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Attacks wherever a model or a file can put text."""
    folder = tmp_path_factory.mktemp("hostile")
    sketches = []
    for number, attack in enumerate(ATTACKS):
        best = (Unit(1, 1, promotes=(attack, "plain")), Unit(2, number, promotes=(attack,)))
        maps = [Map(grid(number), rank=0)]
        words = [
            Word(attack, best, maps, lemma=attack, start=2, note=attack),
            Word("word", best, maps, lemma=f"{attack}!", note=attack),
        ]
        name = f"{number} {attack}".replace("\0", "0").replace("/", "∕") + ".png"
        sketches.append(Sketch(name, f"A {attack} and a word", words, noise(seed=number)))
        sketches.append(Sketch(f"gone {attack}", f"A {attack} and a word", words))
    sketches += [Sketch(attack, status="error", error=attack) for attack in ATTACKS]
    text = ATTACKS[0]
    run = write_run(folder, sketches, model={"name": text, "class": text}, options={text: text, "prompt": text})
    return write_report(run, folder / "report.html")


def painted(page):
    """The pixels of the map as the canvas has them."""
    return page.evaluate("document.getElementById('map').toDataURL()")


def drawn(page):
    """Wait for the charts."""
    page.wait_for_selector("#chart-blocks svg .mark-rect path", state="attached")
    page.wait_for_selector("#chart-sharing svg .mark-rect path", state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_it_opens_without_a_request_or_a_complaint_at_every_width(visit, report, screenshots, width, scheme):
    with visit(report, width=width, scheme=scheme) as watched:
        page = watched.page
        drawn(page)
        assert page.locator(".card").count() == 12
        assert page.locator("#inspector").is_visible()
        page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        right = page.evaluate(
            "Math.max(...[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll'))"
            ".map((e) => e.getBoundingClientRect().right))"
        )
        assert right <= width
        assert page.locator("#chart-blocks path[aria-label]").count() == 2 * 24
        assert page.locator("#chart-sharing .mark-rect path[aria-label]").count() == 7 * 6
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(ink, paper) > 10
        lightness = luminance(paper)
        assert lightness > 0.9 if scheme == "light" else lightness < 0.02
        watched.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_it_stands_on(visit, report, scheme):
    """WCAG's 4.5 : 1, for every element that has text of its own, on the nearest background."""
    with visit(report, scheme=scheme) as watched:
        found = watched.page.evaluate(
            """() => {
                const below = (node) => getComputedStyle(node).backgroundColor;
                const isClear = (node) => node !== document.body && below(node) === 'rgba(0, 0, 0, 0)';
                const seen = [];
                for (const node of document.querySelectorAll('body *')) {
                    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
                    if (!own || node.closest('script, svg, noscript, .chart') || !node.checkVisibility()) continue;
                    let ground = node;
                    while (isClear(ground)) ground = ground.parentElement;
                    seen.push([node.textContent.slice(0, 30), getComputedStyle(node).color, below(ground)]);
                }
                return seen;
            }"""
        )
        assert len(found) > 100
        assert [entry for entry in found if contrast(entry[1], entry[2]) < 4.5] == []


def test_attacks_are_text(visit, hostile):
    with visit(hostile) as watched:
        page = watched.page
        drawn(page)
        words = page.locator(".card .word")
        assert words.count() == 4 * len(ATTACKS)
        for index in range(words.count()):
            words.nth(index).click()
        rows = page.locator("#neurons tr")
        for index in range(rows.count()):
            rows.nth(index).hover()
        page.locator("#chart-sharing .mark-rect path").nth(3).hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert "<" in page.locator("#vg-tooltip-element").inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == len(ATTACKS) + 1
        assert page.locator("[onerror], [onmouseover], iframe, b").count() == 0
        captions = page.locator(".card .caption").all_inner_texts()
        assert captions[0].strip() == f"A {ATTACKS[0]} and a word"
        assert captions[6].strip() == f"A {ATTACKS[3]} and a word"
        assert captions[12].strip() == "A a␀b␛\\u2028c and a word"
        assert captions[14].strip() == "A safe\\u202egpj.exe and a word"
        assert ATTACKS[1] in page.locator("section[aria-labelledby=errors]").inner_text()
        watched.check()


def test_even_markup_that_got_in_would_not_run(visit, report, tmp_path):
    """The second lock: the browser itself refuses scripts that the report did not bring."""
    text = report.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    attack = (
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><img src='https://example.org/x'>"
    )
    broken.write_text(text.replace("<main>", f"<main>{attack}"), encoding="utf-8")
    with visit(broken) as watched:
        drawn(watched.page)
        assert watched.page.evaluate("window.hacked") is None
        assert len([line for line in watched.complaints if "Content Security Policy" in line]) >= 3


def test_the_pointer_shows_a_map_and_a_click_keeps_it(visit, report):
    with visit(report) as watched:
        page = watched.page
        rows = page.locator("#neurons tr")
        assert rows.count() == 11
        first = painted(page)
        rows.nth(3).hover()
        third = painted(page)
        assert third != first
        assert page.locator("#map-name").inner_text() == rows.nth(3).locator("button").inner_text()
        page.mouse.move(5, 5)
        assert painted(page) == first
        rows.nth(3).locator("td").last.click()
        page.mouse.move(5, 5)
        assert painted(page) == third
        assert rows.nth(3).locator("button").get_attribute("aria-pressed") == "true"
        rows.nth(10).click()
        assert page.locator("#map-name").inner_text() == "mean of the first 9"
        assert painted(page) not in (first, third)
        # the tenth neuron has no map in this run: the picture alone, and the page says why
        rows.nth(9).click()
        assert not page.locator("#map").is_visible()
        assert "no map in this run" in page.locator("#map-name").inner_text()
        watched.check()


def test_everything_can_be_done_with_the_keyboard(visit, report):
    with visit(report) as watched:
        page = watched.page
        link = page.locator("#picture-3 .card .word, #picture-3 .word").nth(1)
        link.focus()
        page.keyboard.press("Enter")
        assert page.locator("#word").inner_text() == "cup"
        assert link.get_attribute("aria-pressed") == "true"
        page.locator("#picture-3 .word").nth(0).focus()
        page.keyboard.press("Space")
        assert page.locator("#word").inner_text() == "tree"
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('#neurons') !== null"):
                break
        pictures = [painted(page)]
        for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "Home"):
            page.keyboard.press(key)
            pictures.append(painted(page))
        assert pictures[0] == pictures[5] != pictures[1] == pictures[3] != pictures[2] != pictures[4]
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.textContent") == "tree"
        page.locator("#toggle").focus()
        page.keyboard.press("Space")
        assert not page.locator("#map").is_visible()
        assert page.locator("#toggle").get_attribute("aria-pressed") == "false"
        assert page.evaluate("getComputedStyle(document.getElementById('picture')).filter") == "none"
        watched.check()


def test_a_chosen_word_switches_the_table_and_opens_below_its_picture(visit, report):
    with visit(report) as watched:
        page = watched.page
        before = page.locator("#neurons").inner_text()
        card = page.locator("#picture-7")
        card.scroll_into_view_if_needed()
        card.locator(".word").nth(1).click()
        assert page.locator("#word").inner_text() == card.locator(".word").nth(1).inner_text()
        assert page.locator("#neurons").inner_text() != before
        assert page.locator("#caption").inner_text().strip() == card.locator(".caption").inner_text().strip()
        box, below = card.bounding_box(), page.locator("#inspector").bounding_box()
        assert below["y"] >= box["y"] + box["height"]
        assert below["y"] - (box["y"] + box["height"]) < 120
        page.locator("#caption .word").nth(0).click()
        assert page.locator("#word").inner_text() == card.locator(".word").nth(0).inner_text()
        assert page.locator(".card .word[aria-pressed=true]").count() == 1
        watched.check()


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_the_map_lies_on_the_picture_exactly(visit, report, width, number):
    """Wide, high, very wide, and one that is gone."""
    with visit(report, width=width) as watched:
        page = watched.page
        page.locator(f"#picture-{number} .thumb").click()
        below = page.locator("#missing" if number == 5 else "#picture").bounding_box()
        above = page.locator("#map").bounding_box()
        assert above == pytest.approx(below, abs=1)
        ratio = {0: 4 / 3, 1: 3 / 4, 3: 7.5, 5: 3 / 4}[number]
        assert above["width"] / above["height"] == pytest.approx(ratio, rel=0.02)
        assert above["width"] <= width
        if number == 5:
            assert "cannot be read any more" in page.locator("#missing").inner_text()


def test_what_is_painted_is_the_overlay(visit, tmp_path):
    """Against ``Heatmap.overlay``, which is drawn by other code at full size."""
    size, values = (416, 312), grid(4, (5, 6)).astype(np.float32)
    # without edges, which half a pixel of the page's layout would move, and gray: browsers weigh colors otherwise
    slope = np.add.outer(np.linspace(0, 100, size[1]), np.linspace(0, 155, size[0]))
    picture = Image.fromarray(slope.astype(np.uint8)).convert("RGB")
    rectangle = (52.0, 0.0, 364.0, 312.0)
    sketch = Sketch("a.png", "a dog", [Word("dog", units((1, 1)), [Map(values, rank=0, rectangle=rectangle)])], picture)
    path = write_report(write_run(tmp_path, [sketch]), tmp_path / "report.html")
    placed = ImageGrid(5, 6, rectangle, np.arange(30).reshape(5, 6))
    expected = Heatmap(values.ravel(), Geometry(size, 30, (placed,))).overlay(picture, legend=False)
    with visit(path) as watched:
        frame = watched.page.locator("#frame")
        assert frame.bounding_box()["width"] == pytest.approx(416, abs=1)
        seen = Image.open(io.BytesIO(frame.screenshot())).convert("RGB").resize(size)
        assert watched.page.locator("#unseen").is_visible()
    difference = np.abs(np.asarray(seen, dtype=float) - np.asarray(expected, dtype=float))
    # a raster's step blurs the border of what no token sees; the page rounds its corners
    inside = np.ones(size[0], dtype=bool)
    inside[[*range(40, 64), *range(352, 376)]] = False
    assert np.percentile(difference[8:-8, inside], 99) <= 12
    assert difference[8:-8, inside].mean() <= 3
    assert difference.mean() <= 4


def test_a_finger_is_enough_and_the_map_stays_in_sight(visit, report):
    with visit(report, width=400, height=800, touch=True) as watched:
        page = watched.page
        page.locator("#picture-2 .word").nth(0).tap()
        row = page.locator("#neurons tr").nth(7)
        row.scroll_into_view_if_needed()
        before = painted(page)
        row.tap()
        assert painted(page) != before
        box = page.locator("#map").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] < 800
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        watched.check()


def test_pages_of_nothing_have_no_complaints(visit, tmp_path):
    failed = [Sketch("a.jpg", status="error", error="bad")]
    for name, sketches in (("nothing", []), ("failed", failed), ("wordless", [Sketch("b.jpg", "hm")])):
        path = write_report(write_run(tmp_path / name, sketches), tmp_path / f"{name}.html")
        with visit(path, width=400) as watched:
            assert watched.page.locator(".notice").is_visible()
            assert watched.page.locator("#inspector, .chart").count() == 0
            assert watched.page.evaluate("document.documentElement.scrollWidth") <= 400
            watched.check()


def luminance(color):
    """Relative luminance of an ``rgb(…)``, as WCAG has it."""
    channels = np.array([float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
