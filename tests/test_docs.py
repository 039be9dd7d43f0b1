"""The documentation holds: its code runs, its links lead somewhere, and each error has its page."""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import duckdb
import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from helpers.command import mmn as command
from helpers.first_llava import Pieces
from helpers.speaking import SAID
from mmneurons import errors

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")})
ERROR_PAGES = ROOT / "docs" / "errors"
CHECKPOINT = "llava-hf/llava-1.5-7b-hf"


@dataclass(frozen=True)
class Fence:
    """A fenced block of a document."""

    language: str
    raises: str | None
    text: str
    line: int


def fences(document: Path) -> list[Fence]:
    found, start, info, lines = [], 0, None, []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if info is None and (opening := re.fullmatch(r"\s*```(\S.*)?", line)):
            info, start, lines = opening[1] or "", number, []
        elif info is not None and line.strip() == "```":
            language, *rest = info.split() or [""]
            raises = next((word.removeprefix("raises=") for word in rest if word.startswith("raises=")), None)
            found.append(Fence(language, raises, "\n".join(lines), start))
            info = None
        elif info is not None:
            lines.append(line)
    assert info is None, f"{document.name}: the block that begins in line {start} does not end"
    return found


def identifier(document: Path) -> str:
    return str(document.relative_to(ROOT))


WITH_CODE = [document for document in DOCUMENTS if any(fence.language == "python" for fence in fences(document))]


@pytest.fixture(scope="module")
def first_llava(tmp_path_factory):
    """A folder with a first-generation LLaVA and its CLIP."""
    path = tmp_path_factory.mktemp("first")
    Pieces(path, 1, "bin", "llava-llama-2-13b-chat-lightning-preview", "clip-vit-large-patch14")
    return path


@pytest.fixture
def reader(tiny_checkpoint, first_llava, tmp_path, monkeypatch):
    """A reader's working folder: a few pictures, and checkpoints of the names that the documents load."""
    shutil.copytree(tiny_checkpoint, tmp_path / CHECKPOINT)
    shutil.copytree(first_llava, tmp_path, dirs_exist_ok=True)
    for folder in ("pictures", "photos"):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(0)
    for name in ("dog.jpg", "ball.jpg", *(f"{f}/{n}.jpg" for f in ("pictures", "photos") for n in ("one", "two"))):
        Image.fromarray(noise.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmneurons.demo.assembly.assemble", lambda: tmp_path / CHECKPOINT)
    return tmp_path


def run(document: Path, change=str) -> str:
    """Run all Python blocks of a document, one after the other in one namespace, and return what they print."""
    namespace: dict = {"__name__": document.stem}
    if document.parent == ERROR_PAGES:
        # who reads these has a model already
        namespace |= {"mmn": mmn, "vlm": mmn.load(CHECKPOINT)}
    printed = io.StringIO()
    blocks = fences(document)
    for index, fence in enumerate(blocks):
        if fence.language != "python":
            continue
        # blank lines in front, so that a traceback names the line of the document
        code = compile("\n" * fence.line + change(fence.text), str(document), "exec")
        if fence.raises is None:
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            continue
        with pytest.raises(getattr(errors, fence.raises)) as caught:
            exec(code, namespace)
        after = blocks[index + 1] if index + 1 < len(blocks) else None
        assert after is not None, f"no message follows line {fence.line}"
        assert after.language == "text", f"no message follows line {fence.line}"
        assert matches(str(caught.value), after.text), f"line {after.line} should be: {caught.value}"
    return printed.getvalue()


def matches(message: str, shown: str) -> bool:
    """Whether a message is what a document shows, wherever its lines are broken and with … for any text."""
    one, other = (" ".join(text.split()) for text in (message, shown))
    return re.fullmatch(".*?".join(map(re.escape, other.split("…"))), one) is not None or one == other


def test_matching_of_messages_can_fail():
    assert matches("There is no file 'a' in /tmp.\n(more: x)", "There is no file\n'a' in ….\n(more: x)")
    assert not matches("There is no file 'a'.", "There is no folder 'a'.")
    assert not matches("There is no file 'a'. And more.", "There is no file 'a'.")


@pytest.mark.parametrize("document", WITH_CODE, ids=identifier)
def test_code_runs(document, reader):
    run(document)


def test_readme_shows_a_caption_and_saves_a_picture(reader):
    printed = run(ROOT / "README.md")
    assert SAID in printed
    assert re.search(r"\bL\d+\.u\d+\b", printed)
    with Image.open("where.png") as saved:
        assert saved.width >= 90


@pytest.mark.demo
def test_readme_runs_on_the_demo_model(tmp_path, monkeypatch):
    """Nothing in the seven lines is special to a model: with "demo" for the checkpoint they do the same."""
    shutil.copy(next(picture.path for picture in mmn.demo.pictures() if picture.path.name == "dog.jpg"), tmp_path)
    monkeypatch.chdir(tmp_path)
    printed = run(ROOT / "README.md", lambda code: code.replace(f'"{CHECKPOINT}"', '"demo"', 1))
    assert printed.startswith("An image of ")
    assert "dog" in printed.partition("\n")[0]
    assert len(re.findall(r"\bL\d+\.u\d+\b", printed)) == 10
    assert (tmp_path / "where.png").stat().st_size > 0


DONE_BY_MAKE = re.compile(
    r"make (\w[\w ]*)|python3 -m venv \.venv && .*|\. \.venv/bin/activate|pip install .*|python -m spacy .*"
)
"""Commands that set a machine up; the tests themselves run in what they leave."""


def commands(document: Path) -> list[str]:
    """What stands in a document for the shell, line by line, without comments."""
    lines = [line for fence in fences(document) if fence.language == "sh" for line in fence.text.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


WITH_COMMANDS = [document for document in DOCUMENTS if commands(document)]


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=identifier)
def test_commands_run(document, reader):
    """In their order, in one folder, on a tiny model."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(document):
        if line.startswith("mmn "):
            result = command(*shlex.split(line)[1:])
            assert result.code == 0, f"{line}: {result.err}"
            assert result.out.strip(), line
            continue
        known = DONE_BY_MAKE.fullmatch(line)
        assert known, f"{line!r} is not run by any test"
        for target in (known[1] or "").split():
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), line
        for extra in re.findall(r"\.\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= EXTRAS, line
        for file in re.findall(r"-[cr] (\S+)", line):
            assert (ROOT / file).is_file(), line


EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def test_sql_runs(reader):
    """On a run that the commands around it make; each statement gives rows."""
    document = ROOT / "docs" / "run-folder.md"
    run(document)
    statements = [
        part.strip() for fence in fences(document) if fence.language == "sql" for part in fence.text.split(";")
    ]
    statements = [statement for statement in statements if statement]
    assert len(statements) >= 2
    for statement in statements:
        assert duckdb.sql(statement).fetchall(), statement


def links(document: Path) -> list[tuple[Path, str]]:
    """The files that a document links to or shows, each with the anchor in it, if any."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [a or b for a, b in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)|<img\s[^>]*src=\"([^\"]+)\"", text)]
    places = (target.partition("#") for target in targets if not re.match(r"[a-z]+:", target))
    return [((document.parent / unquote(path)).resolve() if path else document, anchor) for path, _, anchor in places]


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_links_lead_somewhere(document):
    broken = [
        f"{place}#{anchor}"
        for place, anchor in links(document)
        if not place.is_relative_to(ROOT) or not place.exists() or (anchor and anchor not in anchors(place))
    ]
    assert not broken


def anchors(document: Path) -> set[str]:
    """What a heading is linked by: lower case, punctuation away, hyphens for blanks."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_linked_files_are_tracked():
    """A picture that only exists on the author's machine shows on no one else's."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = set(listed.split("\n"))
    for document in DOCUMENTS:
        assert identifier(document) in tracked
        assert not [place for place, _ in links(document) if not place.is_dir() and identifier(place) not in tracked]


CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_has_its_page(kind):
    page = ERROR_PAGES / f"{kind.page}.md"
    text = page.read_text(encoding="utf-8")
    assert kind.__name__ in text
    if kind is not errors.MMNeuronsError:
        assert text.startswith(f"# {kind.__name__}\n")
        assert f"[{kind.__name__}]({page.name})" in (ERROR_PAGES / "index.md").read_text(encoding="utf-8")
        assert {"## Symptom"} <= set(re.findall(r"^## .+$", text, flags=re.MULTILINE))


def test_each_page_is_of_an_error():
    assert {page.stem for page in ERROR_PAGES.glob("*.md")} == {kind.page for kind in CLASSES}
    assert len({kind.page for kind in CLASSES}) == len(CLASSES)


def test_each_message_names_its_page():
    for kind in CLASSES:
        assert str(kind("It went wrong.")) == f"It went wrong.\n(more: docs/errors/{kind.page}.md)"


def test_finders_are_listed():
    from mmneurons.finders import FINDERS

    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    table = concepts.split("## Ways to score")[1]
    assert set(re.findall(r'^\| `"(\w+)"`', table, flags=re.MULTILINE)) == set(FINDERS)


def test_methods_of_editing_and_their_options_are_listed():
    from mmneurons.edits.methods import METHODS

    text = (ROOT / "docs" / "editing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`\"(\w+)\"` )?\| `(\w+)` \| `([^`]+)` \|", text, flags=re.MULTILINE)
    listed, method = set(), ""
    for name, option, default in rows:
        method = name or method
        listed.add((method, option, default))
    fields_of = {name: dataclasses.fields(kind) for name, kind in METHODS.items()}
    assert listed == {(name, one.name, repr(one.default)) for name, own in fields_of.items() for one in own}
    assert all(f'`"{name}"' in text for name in METHODS)
