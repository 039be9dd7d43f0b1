"""The report of a run: one HTML file that holds everything it shows and asks no network for anything."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mmneurons.errors import ExtraMissingError, RunError
from mmneurons.options import check_whole
from mmneurons.runs.reader import Run, readable
from mmneurons.whole_files import write_whole

__all__ = ["write_report"]

NEEDED = {"jinja2": "jinja2", "altair": "altair", "vl_convert": "vl-convert-python"}


def write_report(run: Run, out: Path, *, pictures: int = 40) -> Path:
    """Write the report of a run, also while the run is going on.

    It shows the first pictures with words and, for each word, its best neurons with where they look; and what the whole
    run says: in which blocks the neurons lie, which of them serve many pictures of a word, which words share neurons.

    Args:
        run: the run, see ``mmneurons.runs.open``. Its pictures are read again from where they were.
        out: the file to write; its folder is made if it is not there.
        pictures: how many pictures to show.

    Returns:
        The file.

    Raises:
        OptionError: ``pictures`` is no whole number from 1.
        ExtraMissingError: jinja2, altair or vl-convert-python is not installed.
        RunError: a table of the run cannot be read, or ``out`` is a folder.
    """
    check_whole("pictures", pictures)
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        raise ExtraMissingError(
            f"A report needs {', '.join(missing)}, not installed here. Install it: pip install 'mmneurons[report]'"
        )
    from mmneurons.reports.page import page

    out = Path(out)
    if out.is_dir():
        raise RunError(
            f"{str(out)!r} is a folder, and a report is a file. Name one, such as {str(out / 'report.html')!r}."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with readable(run.path):
        text = page(run, pictures)
    write_whole(out, text.encode())
    return out
