"""Files of edits: what is read is what was written, bit for bit, or it is refused."""

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmneurons.edits import Delta, Edit
from mmneurons.edits import file as module
from mmneurons.edits.file import FORMAT_VERSION, load, save
from mmneurons.errors import EditError

RECIPE = {
    "source": "dog",
    "to": "кот\ud800\U0001f408",
    "method": "direction",
    "requests": [{"picture": None, "prompt": '","sha256":"' + "0" * 64, "at": [0.1, 1e-300, -0.0, 2**70]}],
}


def bits(tensor):
    return tensor.shape, tensor.dtype, tensor.contiguous().numpy().tobytes()


def same(one, other):
    """Whether two edits are the same bit for bit."""
    tensors = [
        [(delta.block, *map(bits, (delta.columns.long(), delta.weights, delta.directions))) for delta in edit.deltas]
        for edit in (one, other)
    ]
    about = [
        json.dumps([dict(edit.recipe), dict(edit.model), dict(edit.measured), edit.converged, edit.banned])
        for edit in (one, other)
    ]
    return tensors[0] == tensors[1] and about[0] == about[1] and one.edit_id == other.edit_id


def small():
    """An edit with a file of about a kilobyte: one direction for two columns, and two of their own for two others."""
    draw = torch.Generator().manual_seed(0)
    deltas = (
        Delta(1, torch.tensor([3, 40]), torch.randn(2, 1, generator=draw), torch.randn(1, 3, generator=draw)),
        Delta.of_vectors(20, torch.tensor([0, 7]), torch.randn(2, 3, generator=draw)),
    )
    about = {"name": "tiny", "class": "Tiny", "fingerprint": "ab" * 32}
    return Edit(deltas, RECIPE, about, {"fall": 0.5, "pictures": [1, 2]}, converged=False, banned=((1, 2), (3,)))


def variants():
    made = small()
    negative = torch.eye(2)
    negative[0, 1] = -0.0
    odd = torch.tensor([[float("nan"), -0.0, 1e-45], [float("inf"), 3.4e38, -1.0]])
    odd.view(torch.int32)[0, 0] = 0x7F812345
    about = ({"to": None}, {"fingerprint": None})
    return {
        "small": made,
        "no deltas": Edit((), {}, {}, banned=((5,),)),
        "nothing at all": Edit((), {}, {}),
        "a negative zero in the identity": Edit((Delta(0, torch.tensor([1, 2]), negative, odd[:, :2]),), *about),
        "numbers that are none": Edit((Delta.of_vectors(0, torch.tensor([1, 2]), odd),), *about),
        "columns of 32 bits": Edit((Delta.of_vectors(0, torch.tensor([1, 2], dtype=torch.int32), odd),), *about),
        "views": Edit(
            (Delta(2, torch.arange(9)[::3], torch.ones(2, 3).T, torch.arange(20.0)[::2].view(2, 5)),), *about
        ),
        "many columns, short directions": Edit((Delta.of_vectors(0, torch.arange(40), torch.ones(40, 2)),), *about),
    }


@pytest.mark.parametrize("name", variants())
def test_what_is_read_is_what_was_written(name, tmp_path):
    edit, path = variants()[name], tmp_path / "edit.safetensors"
    save(edit, path)
    found = load(path)
    assert same(found, edit)
    save(found, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    found.save(str(path))
    assert same(Edit.load(str(path)), edit)
    for delta in found.deltas:
        delta.directions.mul_(1)


def test_other_programs_read_it(tmp_path):
    edit, path = small(), tmp_path / "edit.safetensors"
    save(edit, path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about["version"] == str(FORMAT_VERSION)
    assert json.loads(about["recipe"]) == RECIPE
    assert json.loads(about["converged"]) is False
    assert set(tensors) == {"block1.columns", "block1.weights", "block1.directions", "block20.columns"} | {
        "block20.directions"
    }
    assert torch.equal(tensors["block1.columns"], edit.deltas[0].columns)
    assert tensors["block1.columns"].dtype == torch.int64
    assert torch.equal(tensors["block20.directions"], edit.deltas[1].directions)
    content = path.read_bytes()
    digits = about["sha256"].encode()
    at = content.index(b'"sha256":"') + 10
    assert content[at : at + 64] == digits
    assert hashlib.sha256(content[:at] + b"0" * 64 + content[at + 64 :]).hexdigest().encode() == digits
    # so that the numbers can be mapped into memory as they are
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "edit.safetensors"
    save(small(), path)
    return path, path.read_bytes()


def refused(path, content, says="edit"):
    path.write_bytes(content)
    with pytest.raises(EditError, match=says) as caught:
        load(path)
    return str(caught.value)


def test_a_file_cut_at_any_byte_is_refused(written):
    path, content = written
    for length in range(len(content)):
        refused(path, content[:length])
    for more in (b"\0", b" ", content):
        refused(path, content + more, "damaged")


def test_a_file_with_any_bit_flipped_is_refused(written):
    path, content = written
    draw = random.Random(0)
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << draw.randrange(8)
        refused(path, spoilt)
    # all bits of the digest, of what stands before it, and of the last bytes
    for place in (*range(module._DIGEST.stop), *range(len(content) - 8, len(content))):
        for bit in range(8):
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << bit
            refused(path, spoilt)
    path.write_bytes(content)
    assert same(load(path), small())


def test_bytes_that_change_places_are_refused(written):
    path, content = written
    draw = random.Random(0)
    for _ in range(200):
        one, other = sorted(draw.sample(range(len(content)), 2))
        if content[one] == content[other]:
            continue
        spoilt = bytearray(content)
        spoilt[one], spoilt[other] = spoilt[other], spoilt[one]
        refused(path, spoilt)
    refused(path, content[: module._DIGEST.start] + b"0" * 64 + content[module._DIGEST.stop :], "damaged")
    upper = content[module._DIGEST].upper()
    refused(path, content[: module._DIGEST.start] + upper + content[module._DIGEST.stop :], "damaged")


def test_the_message_names_the_file_and_says_what_to_do(written):
    path, content = written
    message = refused(path, content[:-1])
    assert message.startswith(f"{str(path)!r} is damaged: its SHA-256 is not the one that was written. Get the file ")


def sealed(header, data=b"", length=None):
    """A file with any header behind the fixed beginning, and the right digest."""
    header = module._BEGINNING + b"0" * 64 + header
    length = len(header) if length is None else length
    content = bytearray(length.to_bytes(8, "little") + header + data)
    content[module._DIGEST] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def forged(about=None, described=None, data=b""):
    """A file as a stranger might write it, digest and all."""
    texts = {"version": "1", "recipe": "{}", "model": "{}", "measured": "{}", "converged": "true", "banned": "[]"}
    texts |= about or {}
    inner = json.dumps({name: value for name, value in texts.items() if value is not None})[1:]
    outer = json.dumps(described or {})[1:]
    return sealed(b'",' + inner.encode() + (b"," if described else b"") + outer.encode(), data)


def tensor(kind, shape, start, end):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def test_a_later_format_is_refused_and_it_is_said_why(written):
    path, content = written
    current, later = (forged({"version": str(FORMAT_VERSION + more)}) for more in (0, 1))
    path.write_bytes(current)
    assert same(load(path), Edit((), {}, {}))
    assert "Install a newer mmneurons" in refused(path, later, f"its format is {FORMAT_VERSION + 1}, and this version")
    spoilt = content.replace(b'"version":"1"', b'"version":"3"')
    assert spoilt != content
    refused(path, spoilt, "damaged")


DEEP = "[" * 100_000
FORGERIES = {
    "no version": forged({"version": None}),
    "a version that is no number": forged({"version": "one"}),
    "version 0": forged({"version": "0"}),
    "a version of many digits": forged({"version": "9" * 10_000}),
    "no recipe": forged({"recipe": None}),
    "a recipe that is no JSON": forged({"recipe": "{"}),
    "a recipe that is a list": forged({"recipe": "[]"}),
    "a deep recipe": forged({"recipe": DEEP}),
    "converged is a number": forged({"converged": "1"}),
    "banned is a number": forged({"banned": "1"}),
    "banned holds numbers": forged({"banned": "[1]"}),
    "banned holds fractions": forged({"banned": "[[1.5]]"}),
    "banned holds truths": forged({"banned": "[[true]]"}),
    "no JSON": sealed(b'"'),
    "a deep header": sealed(b'"},"x":' + DEEP.encode()),
    "a header of no text": sealed(b'",' + b"\xff" * 50),
    "a tensor of no edit": forged(described={"other": tensor("I64", [1], 0, 8)}, data=bytes(8)),
    "columns alone": forged(described={"block0.columns": tensor("I64", [1], 0, 8)}, data=bytes(8)),
    "directions alone": forged(described={"block0.directions": tensor("F32", [1, 2], 0, 8)}, data=bytes(8)),
    "a block of no number": forged(described={"blockx.columns": tensor("I64", [1], 0, 8)}, data=bytes(8)),
    "data that is not there": forged(described={"block0.columns": tensor("I64", [2**50], 0, 2**53)}, data=bytes(8)),
    "offsets too large": forged(described={"block0.columns": tensor("I64", [2**60], 0, 2**64)}, data=bytes(8)),
    "offsets below 0": forged(described={"block0.columns": tensor("I64", [1], -8, 0)}, data=bytes(8)),
    "data that is not named": forged(data=bytes(8)),
    "an unknown kind": forged(described={"block0.columns": tensor("X9", [1], 0, 8)}, data=bytes(8)),
    "columns as fractions": forged(
        described={"block0.columns": tensor("F32", [1], 0, 4), "block0.directions": tensor("F32", [1, 1], 4, 8)},
        data=bytes(8),
    ),
    "columns in two axes": forged(
        described={"block0.columns": tensor("I64", [1, 1], 0, 8), "block0.directions": tensor("F32", [1, 2], 8, 16)},
        data=bytes(16),
    ),
    "a column twice": forged(
        described={"block0.columns": tensor("I64", [2], 0, 16), "block0.directions": tensor("F32", [2, 1], 16, 24)},
        data=bytes(24),
    ),
    "no columns": forged(
        described={"block0.columns": tensor("I64", [0], 0, 0), "block0.directions": tensor("F32", [0, 1], 0, 0)},
    ),
    "fewer directions than columns": forged(
        described={"block0.columns": tensor("I64", [2], 0, 16), "block0.directions": tensor("F32", [1, 2], 16, 24)},
        data=(1).to_bytes(8, "little") + (2).to_bytes(8, "little") + bytes(8),
    ),
    "a header that is longer than the file": sealed(b'"}}', length=2**63),
    "a header that is as long as can be": sealed(b'"}}', length=2**64 - 1),
    "a header of no length": sealed(b'"}}', length=0),
    "a header that ends early": sealed(b'"}}', length=60),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_the_right_digest_is_refused(name, tmp_path):
    refused(tmp_path / "edit", FORGERIES[name], "not what mmneurons writes")


def test_a_small_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    """Identities are not in the file: a hundred thousand columns of no entries would ask for forty gigabytes."""

    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(torch, "eye", fail)
    count = 100_000
    numbers = torch.arange(count).numpy().tobytes()
    for width in (0, 1):
        end = 8 * count + 4 * count * width
        described = {
            "block0.columns": tensor("I64", [count], 0, 8 * count),
            "block0.directions": tensor("F32", [count, width], 8 * count, end),
        }
        refused(tmp_path / "edit", forged(described=described, data=numbers + bytes(end - 8 * count)), "not what")


def test_forged_lengths_take_no_memory(tmp_path):
    """A file that says it is huge, and a sparse one that is."""
    path = tmp_path / "edit"
    tracemalloc.start()
    for length in (2**63, 2**40, 2**32):
        refused(path, length.to_bytes(8, "little") + small_content(tmp_path)[8:], "damaged")
        refused(path, length.to_bytes(8, "little"), "not an edit")
    with path.open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(EditError, match="not an edit"):
        load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def small_content(folder):
    save(small(), folder / "small")
    return (folder / "small").read_bytes()


# what is no edit at all


def test_what_is_not_there_and_what_is_a_folder(tmp_path):
    with pytest.raises(EditError, match=r"There is no file '.*nothing'"):
        load(tmp_path / "nothing")
    with pytest.raises(EditError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(EditError, match="is a folder"):
        save(small(), tmp_path)
    with pytest.raises(EditError, match="cannot be read"):
        load("a\0b")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EditError, match="cannot be read"):
        load(tmp_path / "file" / "edit")
    with pytest.raises(EditError, match="cannot be written"):
        save(small(), tmp_path / "file" / "edit")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(EditError, match="is not an edit that mmneurons wrote"):
        load(path)
    save_file({"block0.columns": torch.arange(3)}, path, {"kind": "mmneurons.edit", "sha256": "0" * 64})
    with pytest.raises(EditError):
        load(path)
    for content in (b"", b"\0", b"\x80\x04K\x01.", b"{}", os.urandom(500), b"\0" * 10_000):
        refused(path, content, "is not an edit that mmneurons wrote")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="whoever is root may read and write everything")
def test_what_may_not_be_read_or_written(tmp_path):
    path = tmp_path / "edit"
    save(small(), path)
    path.chmod(0)
    with pytest.raises(EditError, match="cannot be read: Permission denied"):
        load(path)
    tmp_path.chmod(0o500)
    with pytest.raises(EditError, match="cannot be written: Permission denied"):
        save(small(), path)
    tmp_path.chmod(0o700)


# writing


def test_what_cannot_be_kept_is_refused_and_leaves_no_file(tmp_path, unchecked):
    delta = small().deltas[0]
    double = Delta(0, delta.columns, delta.weights.double(), delta.directions)
    cycle: dict = {}
    cycle["itself"] = cycle
    for edit, says in [
        (Edit((double,), {}, {}), "block0.weights .* is float64"),
        (Edit((), {"what": object()}, {}), "'recipe' of an edit"),
        (Edit((), {}, {"what": {1, 2}}), "'model' of an edit"),
        (Edit((), {}, {}, cycle), "'measured' of an edit"),
        (Edit((), {}, {}, banned=((torch.tensor(1),),)), "'banned' of an edit"),
    ]:
        with pytest.raises(EditError, match=says):
            save(edit, tmp_path / "edit")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_made(tmp_path):
    save(small(), tmp_path / "a" / "b" / "edit")
    assert same(load(tmp_path / "a" / "b" / "edit"), small())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken, error):
    path = tmp_path / "edit"
    save(small(), path)
    before = path.read_bytes()

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        expected = EditError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match="No space" if isinstance(error, OSError) else None):
            save(Edit((), {}, {}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    """Killed while two edits are written over one another: what is there is one of them."""
    path = tmp_path / "edit"
    code = (
        "import sys, torch; from mmneurons.edits import Delta, Edit\n"
        "edits = [Edit((Delta.of_vectors(0, torch.arange(64), torch.full((64, 256), float(n))),), {'n': n}, {})"
        " for n in range(2)]\n"
        "edits[0].save(sys.argv[1]); print('ready', flush=True)\n"
        "while True:\n    for edit in edits:\n        edit.save(sys.argv[1])\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    try:
        for _ in range(50):
            found = load(path)
            assert float(found.deltas[0].directions[5, 5]) == found.recipe["n"]
    finally:
        writer.kill()
        writer.wait()
    assert load(path).recipe["n"] in (0, 1)
    assert len([one for one in tmp_path.iterdir() if one != path]) <= 1


@pytest.mark.skipif(os.name != "posix", reason="modes are of posix")
def test_others_may_read_it_as_any_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save(small(), tmp_path / "edit")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "edit")]
    assert modes[0] == modes[1]
