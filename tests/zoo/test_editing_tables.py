"""The tables of the study of edits, counted by hand on three captions."""

import csv
import json

from zoo.editing_tables import counted, main


def caption(before, after, said, **more):
    told = {"before": before, "after": after, "said": said, "said_target": False, "intruded": False}
    return {**told, "gone": "dog" not in after, "there": "cat" in after, **more}


ENTRY = {
    "key": "one",
    "kind": "swap",
    "name": "least squares",
    "source": "dog",
    "to": "cat",
    "seconds": 7.25,
    "converged": True,
    "outcomes": {
        "learned": [caption("a dog", "a cat", True)],
        "held out": [
            caption("a dog and two balls", "a cat and two balls", True),
            caption("a dog and a tree", "a dog and a tree", True),
        ],
        "unseen style": [],
        "others": [
            caption("a tree", "a tree", False),
            caption("a ball", "a cat", False, intruded=True),
            caption("a mouse", "a cat", False, intruded=True),
            caption("a cat", "a cat", False, said_target=True),
        ],
        "others unseen": [],
    },
    "shown": {
        "learned": [["dog"]],
        "held out": [["dog", "ball", "house"], ["dog", "tree"]],
        "unseen style": [],
        "others": [["tree"], ["ball"], ["cat"], ["cat"]],
        "others unseen": [],
    },
}


def test_captions_are_counted():
    found = counted(ENTRY)
    assert (found["learned: met"], found["learned: said"]) == ("1", "1")
    assert (found["held out: met"], found["held out: said"]) == ("1", "2")
    assert (found["articles: there"], found["articles: fit"]) == ("1", "1")
    wrong = {**ENTRY, "to": "owl"}
    wrong["outcomes"] = {**ENTRY["outcomes"], "held out": [caption("a dog", "a owl", True, there=True)]}
    wrong["shown"] = {**ENTRY["shown"], "held out": [["dog"]]}
    assert [counted(wrong)[f"articles: {what}"] for what in ("there", "fit")] == ["1", "0"]
    # what says the target, or shows it, is no test of what must stay
    assert [found[f"trained: {what}"] for what in ("unchanged", "intruded", "captions")] == ["1", "1", "2"]
    # of ball, house and tree the ball and the tree are said
    assert [found[f"other objects: {what}"] for what in ("there", "said before", "said after")] == ["3", "2", "2"]


def test_what_was_tried_of_a_method_has_a_table_and_a_place_in_the_picture(tmp_path, monkeypatch):
    tried = [{**ENTRY, "kind": "sweep: LoRA", "name": name} for name in ("default", "rate 0.01")]
    tried.append({**tried[0], "source": "horse"})
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(own) + "\n" for own in tried))
    arguments = ["tables", "--edits", str(tmp_path / "edits.jsonl"), "--page", str(tmp_path / "page")]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    page = (tmp_path / "page" / "README.md").read_text()
    assert "## Swaps" not in page
    _, table = page.split("## What was tried of LoRA")
    # on the pair that both have
    assert table.count("| default | 1 |") == table.count("| rate 0.01 | 1 |") == 1
    assert "LoRA" in (tmp_path / "page" / "swept.svg").read_text()


def test_the_table_grows_and_keeps_what_it_has(tmp_path, monkeypatch):
    for name, source in (("first", "dog"), ("second", "horse"), ("third", "horse")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**ENTRY, "source": source}) + "\n")
        arguments = ["--edits", tmp_path / f"{name}.jsonl", "--page", tmp_path / "page"]
        monkeypatch.setattr("sys.argv", ["tables", *map(str, arguments)])
        main()
    with (tmp_path / "page" / "edits.csv").open(newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == ["dog", "horse"]
    assert "| least squares | 2 |" in (tmp_path / "page" / "README.md").read_text()


def test_methods_are_compared_on_the_pairs_that_all_of_them_have(tmp_path, monkeypatch):
    made = [("swap", "least squares", source) for source in ("dog", "horse", "cow")]
    made += [("rival", "erase", "dog"), ("rival", "erase", "horse"), ("rival", "ban", "horse")]
    lines = [json.dumps({**ENTRY, "kind": kind, "name": name, "source": source}) for kind, name, source in made]
    (tmp_path / "edits.jsonl").write_text("\n".join(lines))
    page = tmp_path / "page"
    monkeypatch.setattr("sys.argv", ["tables", "--edits", str(tmp_path / "edits.jsonl"), "--page", str(page)])
    main()
    rivals = (page / "README.md").read_text().partition("## Rivals")[2]
    for name in ("least squares (default)", "erase", "ban"):
        assert f"| {name} | 1 |" in rivals
    assert (page / "frontier.svg").exists()


def test_what_has_few_pairs_stands_alone_and_leaves_the_others_theirs(tmp_path, monkeypatch):
    made = [
        (kind, name, f"word{number}") for kind, name in (("swap", "usual"), ("rival", "LoRA")) for number in range(4)
    ]
    made += [("rival", "FiNE", "word2")]
    lines = [json.dumps({**ENTRY, "kind": kind, "name": name, "source": source}) for kind, name, source in made]
    (tmp_path / "edits.jsonl").write_text("\n".join(lines))
    page = tmp_path / "page"
    monkeypatch.setattr("sys.argv", ["tables", "--edits", str(tmp_path / "edits.jsonl"), "--page", str(page)])
    main()
    _, rivals = (page / "README.md").read_text().split("## Rivals")
    wide, few = rivals.split("### FiNE, on fewer")
    assert "| usual (default) | 4 |" in wide
    assert "| LoRA | 4 |" in wide
    assert "FiNE" not in wide
    assert "| usual (default) | 1 |" in few
    assert "| FiNE | 1 |" in few


def test_words_that_are_not_to_be_said_have_rivals_beside_them(tmp_path, monkeypatch):
    made = [("suppress", "usual", source) for source in ("dog", "horse", "cow")]
    made += [("suppress rival", "ban", "dog"), ("suppress rival", "ban", "cow")]
    lines = [json.dumps({**ENTRY, "kind": kind, "name": name, "source": source}) for kind, name, source in made]
    (tmp_path / "edits.jsonl").write_text("\n".join(lines))
    page = tmp_path / "page"
    monkeypatch.setattr("sys.argv", ["tables", "--edits", str(tmp_path / "edits.jsonl"), "--page", str(page)])
    main()
    _, rivals = (page / "README.md").read_text().split("### Rivals, on the same words")
    assert "| usual (default) | 2 |" in rivals
    (ban,) = [line for line in rivals.splitlines() if line.startswith("| ban | 2 |")]
    cells = [cell.strip() for cell in ban.strip("|").split("|")]
    assert [cell.split()[-1] for cell in (cells[3], cells[5])] == ["4", "4"]
    # beside a dog two of three things are said, before and after; beside a cow four of five, then three
    assert cells[7] == "-0.125 [-0.200, 0.000]"
