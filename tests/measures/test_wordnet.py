"""Reading WordNet's files: a small one written here, and the installed one against known entries."""

import subprocess
import sys

import pytest

from mmneurons.measures.wordnet import WordNet, installed_folder

SYNSETS = {
    "animal": (["animal", "Fauna"], []),
    "canine": (["canine", "canid"], [("@", "animal")]),
    "pet": (["domestic_animal"], [("@", "animal")]),
    "dog": (["dog", "Canis_familiaris"], [("@", "canine"), ("~", "lassie"), ("@", "pet"), ("#p", "animal")]),
    "andiron": (["andiron", "dog"], [("@", "pet")]),
    "lassie": (["Lassie"], [("@i", "dog")]),
}
INDEX = {"animal": ["animal"], "dog": ["dog", "andiron"], "lassie": ["lassie"], "domestic_animal": ["pet"]}


def synset_line(offset, words, pointers, offsets):
    told = [f"{len(words):02x}", *(part for word in words for part in (word, "0"))]
    told += [f"{len(pointers):03d}", *(f"{kind} {offsets[target]:08d} n 0000" for kind, target in pointers)]
    return f"{offset:08d} 05 n {' '.join(told)} | a gloss with @ {offset:08d} n 0000 in it  "


@pytest.fixture(params=[None, 2, 4])
def folder(tmp_path, request):
    """WordNet's files: whole, or ``data.noun`` in two parts after some synset, without the line break between."""
    head = "  1 the licence stands here  "
    offsets = dict.fromkeys(SYNSETS, 0)
    lengths = [len(synset_line(0, *SYNSETS[name], offsets)) + 1 for name in SYNSETS]
    for k, name in enumerate(SYNSETS):
        offsets[name] = len(head) + 1 + sum(lengths[:k])
    lines = [head, *(synset_line(offsets[name], *SYNSETS[name], offsets) for name in SYNSETS)]
    if request.param is None:
        (tmp_path / "data.noun").write_text("\n".join(lines) + "\n", "latin-1")
    else:
        (tmp_path / "data.noun1").write_text("\n".join(lines[: request.param]), "latin-1")
        (tmp_path / "data.noun2").write_text("\n".join(lines[request.param :]) + "\n", "latin-1")
    index = [
        f"{lemma} n {len(names)} 2 @ ~ {len(names)} 1 {' '.join(f'{offsets[name]:08d}' for name in names)}  "
        for lemma, names in INDEX.items()
    ]
    (tmp_path / "index.noun").write_text("\n".join([head, *index]) + "\n", "latin-1")
    return tmp_path


def test_direct_hypernyms_only(folder):
    wordnet = WordNet.read(folder)
    assert wordnet.hypernyms("dog", 1) == {"canine", "canid", "domestic animal"}
    assert wordnet.hypernyms("Lassie", 1) == {"dog", "canis familiaris"}
    assert wordnet.hypernyms("domestic animal", 1) == {"animal", "fauna"}
    assert wordnet.hypernyms("animal", 1) == wordnet.hypernyms("unicycle", 1) == frozenset()


def test_rarer_senses_count_when_asked(folder):
    wordnet = WordNet.read(folder)
    only_second = WordNet({"dog": wordnet.index["dog"][1:]}, wordnet.data)
    assert wordnet.hypernyms("dog", 2) == wordnet.hypernyms("dog", 1) | only_second.hypernyms("dog", 1)


def test_files_that_do_not_belong_together_are_refused(folder):
    wordnet = WordNet.read(folder)
    with pytest.raises(ValueError, match="do not belong together"):
        WordNet({"dog": (wordnet.index["dog"][0] + 9,)}, wordnet.data).hypernyms("dog", 1)


@pytest.fixture(scope="module")
def installed():
    try:
        return WordNet.read(installed_folder())
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_known_entries(installed):
    assert installed.hypernyms("dog", 1) == {"canine", "canid", "domestic animal", "domesticated animal"}
    assert installed.hypernyms("zucchini", 2) >= {"summer squash"}
    assert "motor vehicle" in installed.hypernyms("car", 1)
    assert installed.hypernyms("fire truck", 1) == {"truck", "motortruck"}


def test_every_lemma_stands_in_the_synsets_of_its_entry(installed):
    lemmas = sorted(installed.index)[::200]
    assert len(lemmas) > 500
    for lemma in lemmas:
        for synset in installed.index[lemma]:
            assert lemma in [word.lower() for word in installed._words(synset)]


def test_the_package_is_not_imported(installed):
    code = (
        "import sys; from mmneurons.measures.wordnet import installed_folder; installed_folder(); "
        "print('pattern' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
