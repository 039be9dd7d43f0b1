"""The folder of a proof: a page with every figure beside those of rivals, the figures as JSON, and the captions."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np

from mmneurons.edits.edit import QUALITY as MEASURED
from mmneurons.edits.edit import Edit
from mmneurons.engines.proving import Proof
from mmneurons.errors import RunError
from mmneurons.measures.edit_quality import Figure, Quality
from mmneurons.reports.out_folder import check_out_folder
from mmneurons.reports.texts import cell, plain
from mmneurons.reports.unfinished_proof import UNFINISHED
from mmneurons.whole_files import is_half, write_whole

__all__ = ["check_finished", "check_proof_folder", "write_proof"]

PAGE, QUALITY, OUTCOMES, EDIT = "README.md", "quality.json", "outcomes.parquet", "edit.safetensors"

SHOWN = 12
"""How many captions that changed stand on the page."""

_MEANINGS = (
    "*reliability*, *generality*: share of captions that said the source and now meet the request, of pictures that "
    "were learned from, and of others; *other prompts*: asked in other words",
    "*unchanged*, *likeness*, *intrusion*, *same top 1*, *same top 10*, *KL*: over captions that said neither word, of "
    "pictures that show neither as far as is known (of a word that is only not to be said: that did not say it): the "
    "same word for word; F1 of the words; the target said; steps with the same most likely token, with the same ten in "
    "order, KL(before ‖ after) in nats a step, teacher-forced",
    "*articles fit*: share of swapped captions with a or an right before the target in which it is the one that fits; "
    "where it is not, the caption counts as swapped all the same",
    "*rest kept*: F1 of all words of swapped captions but source and target",
    "*text:* the same over answers to prompts without a picture",
    "*nats a token*: surprise of the unedited model, perplexity is its exponential; *elsewhere*: captions that said "
    "neither word",
    "*portability*: share of the given questions that are answered as follows from the edit",
    "*CHAIR*, *POPE*: hallucination; a swap that was asked for counts as one in CHAIR",
    "*added*: after less before, in pairs",
    "an interval without any width says that all these pictures agree, and of few pictures nothing else",
)


def check_proof_folder(folder: Path, edits: list[Edit]) -> None:
    """See that a proof can be written there. Nothing is made.

    Raises:
        RunError: it is a file, holds other files or the proof of other edits, or cannot be written to.
    """
    check_out_folder(folder)
    # what a stop in the midst of writing left is nobody's
    there = sorted(path.name for path in folder.iterdir() if not is_half(path)) if folder.is_dir() else []
    if not there:
        return
    telling = [name for name in (QUALITY, UNFINISHED) if name in there]
    if not {PAGE, QUALITY, OUTCOMES, EDIT, UNFINISHED}.issuperset(there) or not telling:
        raise RunError(f"{str(folder)!r} holds other files. Choose an empty folder, or a new one, with --out.")
    asked = [one.edit_id for one in edits]
    if any(_measured_of(folder / name) != asked for name in telling):
        raise RunError(
            f"{str(folder)!r} holds what was measured of other edits, or is damaged. Choose another folder with --out."
        )


def check_finished(folder: Path, key: str) -> None:
    """See that a finished proof that is there is the one that is asked for: the same edits on the same pictures.

    Args:
        folder: where the proof goes.
        key: ``unfinished_proof.key_of``.

    Raises:
        RunError: it is another, which would be lost.
    """
    try:
        there = json.loads((folder / QUALITY).read_text(encoding="utf-8")).get("key")
    except FileNotFoundError:
        return
    if there != key:
        raise RunError(
            f"{str(folder)!r} holds a finished proof of the same edits on other pictures, with other options, or by "
            "another version. Choose another folder with --out."
        )


def _measured_of(path: Path) -> list[str]:
    try:
        return [one["id"] for one in json.loads(path.read_text(encoding="utf-8"))["edits"]]
    except (ValueError, LookupError, TypeError):
        return []


def write_proof(folder: Path, proof: Proof, key: str) -> Path:
    """Write ``README.md``, ``quality.json`` and ``outcomes.parquet``; what was kept of unfinished work is removed.

    Of one edit ``edit.safetensors``, too: the same edit, with its figures in ``measured``.

    Args:
        folder: where to.
        proof: what was measured.
        key: what tells it from others, see ``check_finished``.

    Raises:
        RunError: see ``check_proof_folder``.
    """
    check_proof_folder(folder, list(proof.edits))
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = BytesIO()
    proof.outcomes.write_parquet(outcomes)
    write_whole(folder / OUTCOMES, outcomes.getvalue())
    kept = {
        "key": key,
        "edits": [
            {
                "id": one.edit_id,
                **{name: one.recipe.get(name) for name in ("source", "to", "method", "options")},
                "converged": one.converged,
            }
            for one in proof.edits
        ],
        "model": dict(proof.edits[0].model),
        "notes": list(proof.notes),
        "quality": {name: own.as_json() for name, own in proof.columns.items()},
    }
    write_whole(folder / QUALITY, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    if len(proof.edits) == 1:
        own, quality = proof.edits[0], next(iter(proof.columns.values()))
        replace(own, measured={**own.measured, MEASURED: quality.as_json()}).save(folder / EDIT)
    write_whole(folder / PAGE, _page(proof).encode())
    (folder / UNFINISHED).unlink(missing_ok=True)
    return folder / PAGE


def _page(proof: Proof) -> str:
    model = plain(proof.edits[0].model.get("name"))
    lines = ["# " + ("Is this edit good?" if len(proof.edits) == 1 else "Are these edits good together?"), ""]
    lines += [f"- {_described(one)}" for one in proof.edits[:20]]
    if len(proof.edits) > 20:
        lines.append(f"- … {len(proof.edits) - 20} more")
    counts = {name: len(set(own["picture"])) for (name,), own in proof.outcomes.group_by("pool", maintain_order=True)}
    learned = f"; learned from {counts['learned']}" if "learned" in counts else ""
    lines += [
        "",
        f"Tried on {counts['others']} pictures of {model}{learned}. In brackets 95 % intervals: Wilson's for shares of "
        "captions; for means, and for what has a before and an after, bootstrap over pictures.",
        "",
    ]
    lines += _table(proof)
    if proof.notes:
        lines += ["", *(f"- {plain(note)}" for note in proof.notes)]
    lines += ["", "## What the figures are", "", *(f"- {text}." for text in _MEANINGS), ""]
    # of several edits all are in force in the last column; of one, the rivals stand behind it
    column = [*proof.columns][-1 if len(proof.edits) > 1 else 0]
    changed = proof.outcomes.filter(
        (proof.outcomes["column"] == column)
        & (proof.outcomes["pool"] == "others")
        & (proof.outcomes["before"] != proof.outcomes["after"])
    ).unique(["picture", "prompt"], maintain_order=True)
    if changed.height:
        some = f", {SHOWN} of them" if changed.height > SHOWN else ""
        lines += [f"## {changed.height} of {counts['others']} captions changed ({column}){some}", ""]
        lines += ["| picture | before | after |", "|---|---|---|"]
        for one in changed.head(SHOWN).iter_rows(named=True):
            lines.append(f"| {cell(one['picture'])} | {cell(one['before'])} | {cell(one['after'])} |")
        lines += ["", f"All are in `{OUTCOMES}`.", ""]
    return "\n".join(lines)


def _described(edit: Edit) -> str:
    source, to = edit.recipe.get("source"), edit.recipe.get("to")
    what = f"never “{cell(source)}”" if to is None else f"“{cell(to)}” instead of “{cell(source)}”"
    return f"{what}: {cell(edit.recipe.get('method'))}{'' if edit.converged else ', not converged'}"


def _table(proof: Proof) -> list[str]:
    names = list(dict.fromkeys(one.name for own in proof.columns.values() for one in own.figures))
    lines = [f"| figure | captions | {' | '.join(proof.columns)} |", "|---" * (len(proof.columns) + 2) + "|"]
    for name in names:
        found = [_figure(own, name) for own in proof.columns.values()]
        count = next(one.captions for one in found if one is not None)
        lines.append(f"| {name} | {count} | {' | '.join(_shown(one, count) for one in found)} |")
    return lines


def _figure(quality: Quality, name: str) -> Figure | None:
    return next((one for one in quality.figures if one.name == name), None)


def _shown(figure: Figure | None, count: int) -> str:
    if figure is None or np.isnan(figure.estimate.value):
        return "–"
    text = format(figure.estimate, ".3g")
    return text if figure.captions == count else f"{text} (n = {figure.captions})"
