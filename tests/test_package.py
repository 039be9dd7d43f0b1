"""The package as such: what importing it costs, what it exports, and which module may import which."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mmneurons as mmn

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mmneurons"
HEAVY = ("torch", "transformers", "spacy", "numpy", "PIL", "polars")

RANKS = {
    "errors": 0,
    "whole_files": 0,
    "vlm": 1,
    "demo": 1,
    "options": 1,
    "presets": 1,
    "english": 2,
    "nouns": 3,
    "table": 1,
    "words": 4,
    "promotion": 4,
    "recordings": 5,
    "neurons": 5,
    "finders": 5,
    "heatmaps": 5,
    "sources": 5,
    "finding": 6,
    "exactness": 7,
    "interventions": 7,
    "diagnosis": 8,
    "edits": 8,
    "measures": 9,
    "runs": 9,
    "engines": 10,
    "mitigation": 10,
    "reports": 11,
    "explorer": 11,
    "cli": 12,
}
"""The arrows of the design: a part imports parts of lower rank, and its own."""

UPWARD = {
    ("vlm.model", "neurons"): "vlm.neuron(…) hands out a Neuron",
    ("neurons", "recordings"): "Neuron.activations(pictures) records the pictures",
    ("vlm.loading", "demo"): "load('demo') puts the demo model together",
    ("finding", "reports"): "found.figure() draws a word",
}
"""Imports against the arrows, each with what it is for. They stand inside a function or under TYPE_CHECKING."""


@dataclass(frozen=True)
class Import:
    """One import of one module.

    Attributes:
        importer: the module that imports, without ``mmneurons.``.
        imported: the dotted name that is imported.
        lazy: it stands inside a function or under TYPE_CHECKING, so that importing the importer does not run it.
    """

    importer: str
    imported: str
    lazy: bool


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[Import]:
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), module_name(path), lazy=False)


def _imports(node: ast.AST, importer: str, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(importer, alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{importer} imports relatively"
            yield Import(importer, child.module or "", lazy)
            yield from (Import(importer, f"{child.module}.{alias.name}", lazy) for alias in child.names)
        else:
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, importer, lazy or checking or inner)


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
IMPORTS = [found for path in MODULES for found in imports_of(path)]


def part(module: str) -> str:
    return module.removeprefix("mmneurons.").split(".")[0]


def test_the_reader_of_imports_tells_lazy_ones(tmp_path):
    code = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from c import d\nclass C:\n    import e\n"
    found = {(i.imported, i.lazy) for i in _imports(ast.parse(code), "m", lazy=False)}
    assert found == {("a", False), ("b", True), ("c", True), ("c.d", True), ("e", False)}


@pytest.mark.parametrize("imported", ["mmneurons", "mmneurons.errors", "mmneurons.demo"])
def test_importing_loads_nothing_heavy(imported):
    code = f"import sys, {imported}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "mmneurons" in loaded
    assert not set(HEAVY) & set(loaded)


def test_listing_names_loads_nothing_heavy():
    code = "import sys, mmneurons as mmn; dir(mmn); mmn.__version__; mmn.demo; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"


def test_time_of_import_is_measured(record_property):
    """Printed with -rP, not asserted: how long it takes is the machine's; what is loaded is asserted above."""
    command = [sys.executable, "-X", "importtime", "-c", "import mmneurons"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    totals = re.findall(r"\|\s+(\d+) \| mmneurons$", report, flags=re.MULTILINE)
    assert len(totals) == 1
    microseconds = int(totals[0])
    record_property("import mmneurons, microseconds", microseconds)
    print(f"import mmneurons: {microseconds / 1000:.1f} ms")


def test_public_names_resolve():
    assert len(set(mmn.__all__)) == len(mmn.__all__)
    for name in mmn.__all__:
        assert getattr(mmn, name) is not None
        assert name in dir(mmn)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mmn.no_such_name


def test_public_names_are_what_type_checkers_see():
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (checking,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in checking.body for alias in node.names}
    assert set(seen) == set(mmn.__all__) - {"__version__"}
    for name, (module, original) in seen.items():
        assert name == original
        if name not in ("demo", "runs"):
            assert getattr(importlib.import_module(module), original) is getattr(mmn, name)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_all_is_defined_and_true(path):
    if path.stem == "__main__":
        pytest.skip("a script exports nothing")
    module = importlib.import_module(f"mmneurons.{module_name(path)}")
    assert all(hasattr(module, name) for name in module.__all__)
    assert not [name for name in module.__all__ if name.startswith("_")]


def test_only_vlm_and_demo_talk_to_transformers():
    talkers = {found.importer for found in IMPORTS if found.imported.split(".")[0] == "transformers"}
    assert talkers
    assert {part(importer) for importer in talkers} <= {"vlm", "demo"}


def test_every_part_has_a_rank():
    assert {part(module_name(path)) for path in MODULES} <= set(RANKS)


def test_arrows_point_one_way():
    ours = [found for found in IMPORTS if found.imported.startswith("mmneurons.")]
    assert len(ours) > 20
    upward = [
        found
        for found in ours
        if part(found.importer) != part(found.imported) and RANKS[part(found.importer)] <= RANKS[part(found.imported)]
    ]
    against = {(found.importer, part(found.imported)) for found in upward}
    assert against == set(UPWARD), "imports against the arrows, or exceptions that are no longer needed"
    assert all(found.lazy for found in upward)


def test_no_module_imports_the_package_itself():
    """It would hide which part is meant. A script is a user of the package and may."""
    users = {found.importer for found in IMPORTS if found.imported == "mmneurons"}
    assert all(user.endswith("__main__") for user in users)


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == mmn.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)[1] == mmn.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest[1] == mmn.__version__


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_private_paths_and_no_registry_hosts():
    private = re.compile(r"(?<![\w.])/(?:root|work|Users|home/\w+)/\w")
    hosts = re.compile(r"\b(?:pypi|pythonhosted|npmjs|npmmirror|jsdelivr|unpkg)\b\.(?:org|com|net)", re.IGNORECASE)
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if private.search(line) or hosts.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    wanted = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in named} - {"mmneurons"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert wanted <= pins
    assert "torch==2.13.0" in lines
    assert "torchvision" not in pins
