"""The command: what it prints, what it returns, and that a user's mistake is no traceback."""

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

import mmneurons
from helpers.command import mmn

SUBCOMMANDS = ("demo", "find", "show", "report", "doctor", "models", "convert")


@pytest.fixture
def run(place, tiny_checkpoint):
    """A run over the seven pictures."""
    result = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run", "--quiet")
    assert result.code == 0, result.err
    return result


def test_find_says_what_it_did(place, tiny_checkpoint):
    result = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run")
    assert (result.code, result.out) == (0, "run: 7 pictures explained, 14 words\n")
    assert "4 blocks" in result.err or "blocks of" in result.err
    assert "mmn report run" in result.err
    again = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run")
    assert (again.code, again.out) == (0, "run: 7 pictures explained; 7 were done before\n")


def test_find_in_json(place, tiny_checkpoint):
    (place / "photos" / "bad.png").write_bytes(b"")
    result = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run", "--json", "--batch-size", 4)
    assert result.code == 0
    assert result.err == ""
    assert [event["event"] for event in result.events] == ["progress"] * 3 + ["done"]
    assert [event["done"] for event in result.events] == [0, 4, 8, 8]
    end = result.events[-1]
    assert (end["run"], end["total"], end["failed"], end["words"]) == ("run", 8, 1, 14)


def test_options_arrive_under_their_names(place, tiny_checkpoint):
    options = {
        "finder": "contribution",
        "against": "none",
        "norm": "none",
        "activation": "gate",
        "token": "sum",
        "neurons": 3,
        "promotes": 2,
        "by": "product",
        "maps": 1,
        "seed": 5,
        "prompt": "What is it?",
        "prefix": "It is",
        "max-new-tokens": 7,
        "limit": 2,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run", "--words", "dog", *arguments)
    assert result.code == 0, result.err
    about = mmneurons.runs.open("run").about
    expected = {name.replace("-", "_"): None if value == "none" else value for name, value in options.items()}
    assert {name: about["options"].get(name, "absent") for name in expected} == {**expected, "limit": "absent"}
    assert about["options"]["words"] == ["dog"]
    assert about["pictures"]["limit"] == 2


def test_a_preset_is_the_papers_setting_in_one_flag(place, tiny_checkpoint):
    arguments = ("find", "photos", "--model", tiny_checkpoint, "--limit", 1, "--quiet")
    assert mmn(*arguments, "--out", "one", "--preset", "pan2024").code == 0
    paper = ("--against", "none", "--norm", "none", "--activation", "gate", "--by", "product", "--occurrence", "first")
    assert mmn(*arguments, "--out", "many", *paper).code == 0
    one, many = (mmneurons.runs.open(run) for run in ("one", "many"))
    assert one.about["options"] == many.about["options"]
    assert one.neurons.collect().equals(many.neurons.collect())
    assert one.about["options"]["norm"] is None
    changed = mmn(*arguments, "--out", "changed", "--preset", "pan2024", "--norm", "frozen")
    assert changed.code == 0
    assert mmneurons.runs.open("changed").about["options"]["norm"] == "frozen"
    active = mmn(*arguments, "--out", "active", "--preset", "pan2024", "--finder", "activation")
    assert (active.code, mmneurons.runs.open("active").about["options"]["by"]) == (0, "product")
    unknown = mmn(*arguments, "--out", "unknown", "--preset", "pan2023")
    assert (unknown.code, "There are: pan2024" in unknown.err) == (1, True)


def test_shuffled_image_tokens_say_something_else_and_have_no_maps(place, tiny_checkpoint):
    arguments = ("find", "photos", "--model", tiny_checkpoint, "--limit", 2, "--quiet")
    assert mmn(*arguments, "--out", "plain").code == 0
    assert mmn(*arguments, "--out", "shuffled", "--shuffle-image-tokens", 1).code == 0
    plain, shuffled = (mmneurons.runs.open(run) for run in ("plain", "shuffled"))
    assert shuffled.about["options"]["shuffle_image_tokens"] == 1
    assert shuffled.heatmaps.collect().height == 0
    probabilities = [run.words.collect()["probability"].to_list() for run in (plain, shuffled)]
    assert probabilities[0] != probabilities[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["find", "nowhere"], "nowhere"),
        (["find", "photos", "--model", "nowhere/at/all"], "no folder 'nowhere/at/all'"),
        (["find", "photos", "--model", "photos"], "no config.json"),
        (["show", "photos"], "no run.json"),
        (["show", "nowhere"], "no folder 'nowhere'"),
        (["report", "nowhere"], "no folder 'nowhere'"),
        (["doctor", "nowhere/at/all"], "no folder"),
        (["find", "photos", "--neurons", "0"], "--neurons=0"),
        (["find", "photos", "--batch-size", "0"], "--batch-size=0"),
        (["find", "photos", "--seed", "-1"], "seed=-1"),
        (["find", "photos", "--words", ""], "'' is no word"),
        (["find", "photos", "--finder", "contributions"], "There is no finder 'contributions'"),
        (["find", "photos", "--out", "photos"], "holds other files"),
        (["find", "photos", "--revision", "main"], "--revision 'main'"),
        (["doctor", "demo", "--revision", "main"], "--revision 'main'"),
        (["demo", "--neurons", "0"], "--neurons=0"),
        (["show", "photos", "--limit", "0"], "--limit=0"),
    ],
)
def test_mistakes_are_messages(place, arguments, says):
    result = mmn(*arguments)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert says in result.err
    assert "docs/errors/" in result.err
    assert "Traceback" not in result.err
    as_json = mmn(*arguments, "--json")
    assert as_json.code == 1
    (event,) = as_json.events
    assert event["event"] == "error"
    assert says in event["message"]


@pytest.mark.parametrize(
    "arguments",
    [["find"], ["fnid"], ["find", "photos", "--against"], ["find", "photos", "--token", "middle"], ["show"]],
)
def test_wrong_usage(place, arguments):
    result = mmn(*arguments)
    assert result.code == 2
    assert "Usage" in result.err or "Error" in result.err
    assert "Traceback" not in result.err


def test_another_question_to_the_same_folder_is_refused(run, tiny_checkpoint):
    result = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run", "--neurons", 5)
    assert result.code == 1
    assert "options neurons is 10 there and 5 here" in result.err


def test_names_that_are_not_utf_8_are_written_so_that_they_can_be_read(place, tiny_checkpoint):
    name = os.fsdecode(b"dogs\xff")
    (place / "photos").rename(place / name)
    result = mmn("find", name, "--model", tiny_checkpoint, "--out", "run", "--limit", 2)
    assert (result.code, result.err.count("Traceback")) == (0, 0)
    about = mmneurons.runs.open("run").about
    assert about["pictures"]["inputs"] == ["dogs\\xff"]
    assert mmn("find", name, "--model", tiny_checkpoint, "--out", "run", "--limit", 2).code == 0
    assert mmn("report", "run").code == 0


def test_a_terminal_of_another_encoding_shows_what_it_can(place, run):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    (place / "run" / "run.json").write_text("…")
    command = [sys.executable, "-m", "mmneurons.cli.main", "show", "run"]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: 'run/run.json' is damaged")
    assert b"Traceback" not in result.stderr


def test_stopped_by_hand_is_said(place, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmneurons.runs.reader.open_run", stop)
    (as_json,) = mmn("show", "run", "--json").events
    assert as_json == {"event": "stopped"}
    result = mmn("show", "run")
    assert (result.code, "Stopped" in result.err) == (130, True)


def test_no_picture_explained_is_an_exit_code_of_its_own(place, tiny_checkpoint):
    (place / "bad").mkdir()
    (place / "bad" / "a.png").write_bytes(b"no picture")
    result = mmn("find", "bad", "--model", tiny_checkpoint, "--out", "run")
    assert result.code == 3
    assert "1 failed (their errors: mmn show run)" in result.out


def test_show(run):
    shown = mmn("show", "run")
    assert shown.code == 0
    assert shown.out.count("An image of a dog and a ball.\n") == 7
    assert shown.out.count("'dog' in 'An image of a dog and a ball.'") == 7
    assert "7 pictures explained, 14 words" in shown.err
    one = mmn("show", "run", "3.png", "--words", "dogs", "--neurons", 5, "--json")
    (page,) = one.events
    assert page["source"].endswith("3.png")
    assert [word["lemma"] for word in page["words"]] == ["dog"]
    assert len(page["words"][0]["neurons"]) == 5
    assert mmn("show", "run", "--limit", 2).out.count("'ball' in") == 2
    none = mmn("show", "run", "--words", "zebra")
    assert (none.code, none.out) == (0, "")
    assert "zebra" in none.err


def test_show_of_a_run_that_is_still_going_on(run, tiny_checkpoint, place):
    Image.new("RGB", (50, 50)).save(place / "photos" / "more.png")
    (place / "run" / "run.json").write_text(
        (place / "run" / "run.json").read_text().replace('"total": 7', '"total": 8')
    )
    assert "1 still to do" in mmn("show", "run").err


@pytest.mark.parametrize("subcommand", ["show", "report"])
@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_part_is_named(run, place, subcommand, damage):
    table = place / "run" / "parts" / "000000" / "words.parquet"
    table.unlink()
    if damage == "cut off":
        table.write_bytes(b"PAR1")
    result = mmn(subcommand, "run")
    assert result.code == 1
    assert "'run/parts/000000' cannot be read" in result.err
    assert "Delete this folder" in result.err
    assert "Traceback" not in result.err


def test_report_and_figures(run, place):
    report = mmn("report", "run")
    assert (report.code, report.out) == (0, "run/report.html\n")
    assert "An image of a" in (place / "run" / "report.html").read_text()
    into_a_folder = mmn("report", "run", "--out", "photos")
    assert (into_a_folder.code, "'photos' is a folder" in into_a_folder.err) == (1, True)
    figures = mmn("report", "run", "--figures", "figures", "--limit", 2, "--neurons", 2)
    assert figures.code == 0
    assert "4 figures in figures" in figures.out
    kinds = sorted(path.suffix for path in (place / "figures").iterdir())
    assert kinds == [".png"] * 4 + [".svg"] * 4


def test_doctor(place, tiny_checkpoint):
    result = mmn("doctor", tiny_checkpoint, "--picture", "photos/0.png")
    assert result.code == 0, result.out
    assert "down_proj" in result.out
    (data,) = mmn("doctor", tiny_checkpoint, "--picture", "photos/0.png", "--json").events
    assert data["ok"] is True


@pytest.mark.parametrize("subcommand", [(), *((name,) for name in SUBCOMMANDS)])
def test_help_has_examples(subcommand):
    result = mmn(*subcommand, "--help")
    assert result.code == 0
    assert "mmn" in result.out
    if subcommand:
        assert "Examples" in result.out
        assert f"mmn {subcommand[0]}" in result.out


def test_models():
    result = mmn("models")
    assert result.code == 0
    assert "scores" in result.out.splitlines()[0]
    assert any(line.split()[:2] == ["qwen2_vl", "yes"] for line in result.out.splitlines())
    assert "pi0: out of reach" in result.out
    events = mmn("models", "mixtral", "--json").events
    assert [(event["name"], event["scores"], event["experts"]) for event in events] == [("llava/mixtral", "yes", "yes")]
    assert "holds 'nothing'" in mmn("models", "nothing").err


def test_version():
    assert mmn("--version").out == f"mmn {mmneurons.__version__}\n"


def test_the_command_starts_without_torch():
    code = (
        "import sys, mmneurons.cli.main; print(sorted({'torch', 'transformers', 'polars', 'PIL'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "[]\n"


START = """
import sys, time
write = sys.stdout.write
def waiting(text):
    written = write(text)
    if '"done": 2' in text:
        sys.stdout.flush()
        time.sleep(30)  # however busy the machine is, it is stopped here
    return written
sys.stdout.write = waiting
how = "--out run --json --shard 1 --batch-size 1"
sys.argv = ["mmn", "find", "photos", "--model", sys.argv[1], *how.split()]
from mmneurons.cli.main import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_ends_it_and_the_same_command_goes_on(place, tiny_checkpoint):
    command = [sys.executable, "-c", START, str(tiny_checkpoint)]
    going = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    for line in going.stdout:
        if json.loads(line)["done"] >= 2:
            going.send_signal(signal.SIGINT)
            break
    rest, err = going.communicate(timeout=60)
    if going.returncode == 0:
        pytest.fail(f"it had ended before it was stopped: {rest}")
    assert going.returncode == 130, err
    assert "Traceback" not in err
    before = mmneurons.runs.open("run").images.collect().height
    assert 1 <= before < 7
    events = mmn("find", "photos", "--model", tiny_checkpoint, "--out", "run", "--json", "--shard", 1).events
    assert (events[0]["before"], events[-1]["done"]) == (before, 7)
