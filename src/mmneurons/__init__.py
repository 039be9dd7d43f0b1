"""Find and edit the neurons of a vision-language model that turn what it sees into the words it says."""

from importlib import import_module
from typing import TYPE_CHECKING

from mmneurons.demo.registration import register_with_transformers

if TYPE_CHECKING:
    from mmneurons import demo as demo
    from mmneurons import runs as runs
    from mmneurons.edits.edit import Edit as Edit
    from mmneurons.edits.make import edit as edit
    from mmneurons.engines.local import run as run
    from mmneurons.errors import MMNeuronsError as MMNeuronsError
    from mmneurons.exactness import check_neurons as check_neurons
    from mmneurons.exactness import completeness as completeness
    from mmneurons.finding import Finding as Finding
    from mmneurons.finding import WordFinding as WordFinding
    from mmneurons.finding import find as find
    from mmneurons.heatmaps import Heatmap as Heatmap
    from mmneurons.neurons import Neuron as Neuron
    from mmneurons.neurons import NeuronTable as NeuronTable
    from mmneurons.presets import PRESETS as PRESETS
    from mmneurons.recordings import caption as caption
    from mmneurons.recordings import record as record
    from mmneurons.vlm.anatomy import Anatomy as Anatomy
    from mmneurons.vlm.loading import load as load
    from mmneurons.vlm.loading import wrap as wrap
    from mmneurons.vlm.model import VLM as VLM
    from mmneurons.vlm.recording import Recording as Recording

__version__ = "0.1.0"

_PLACES = {
    "Anatomy": "vlm.anatomy",
    "Edit": "edits.edit",
    "Finding": "finding",
    "Heatmap": "heatmaps",
    "MMNeuronsError": "errors",
    "Neuron": "neurons",
    "NeuronTable": "neurons",
    "PRESETS": "presets",
    "Recording": "vlm.recording",
    "VLM": "vlm.model",
    "WordFinding": "finding",
    "caption": "recordings",
    "check_neurons": "exactness",
    "completeness": "exactness",
    "edit": "edits.make",
    "find": "finding",
    "load": "vlm.loading",
    "record": "recordings",
    "run": "engines.local",
    "wrap": "vlm.loading",
}

__all__ = [
    "PRESETS",
    "VLM",
    "Anatomy",
    "Edit",
    "Finding",
    "Heatmap",
    "MMNeuronsError",
    "Neuron",
    "NeuronTable",
    "Recording",
    "WordFinding",
    "__version__",
    "caption",
    "check_neurons",
    "completeness",
    "demo",
    "edit",
    "find",
    "load",
    "record",
    "run",
    "runs",
    "wrap",
]


register_with_transformers()


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import: nothing here is imported before it is asked for
    if name in ("demo", "runs"):
        return import_module(f"mmneurons.{name}")
    if name in _PLACES:
        value = getattr(import_module(f"mmneurons.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mmneurons' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
