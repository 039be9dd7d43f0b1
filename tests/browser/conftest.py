"""Chromium, driven from Python. Without it these tests are skipped; with MMNEURONS_REQUIRE_BROWSER=1 they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Watched:
    """A page, and everything that should not happen on it.

    Attributes:
        page: playwright's.
        complaints: what the console said, and errors that nobody caught.
        requests: addresses that were asked for, the file itself and what it holds left out.
        dialogs: what popped up.
    """

    page: object
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Nothing happened that should not."""
        assert self.complaints == []
        assert self.requests == []
        assert self.dialogs == []


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """The browser, with a profile that is empty and goes away with it."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    missing = [
        *([] if program else ["Chromium (Debian: apt-get install chromium)"]),
        *([] if find_spec("playwright") else ["playwright (pip install -c constraints.txt playwright)"]),
    ]
    if missing:
        message = f"The tests in a browser need {' and '.join(missing)}."
        if os.environ.get("MMNEURONS_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a file in a window of its own: ``with visit(path, width=400, scheme="dark") as watched``."""

    @contextmanager
    def opened(path: Path, *, width: int = 1400, height: int = 900, scheme: str = "light", touch: bool = False):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, is_mobile=touch
        )
        page = context.new_page()
        page.set_default_timeout(15_000)
        watched = Watched(page)
        page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.complaints.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: (watched.dialogs.append(dialog.message), dialog.dismiss()))
        own = path.resolve().as_uri()
        page.on(
            "request",
            lambda request: None if request.url.startswith((own, "data:")) else watched.requests.append(request.url),
        )
        page.goto(own)
        try:
            yield watched
        finally:
            context.close()

    return opened


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of pages are left: the folder that MMNEURONS_SCREENSHOTS names, or one that nobody keeps."""
    folder = Path(os.environ.get("MMNEURONS_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
