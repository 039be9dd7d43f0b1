"""Has transformers know the demo model's vision tower once both it and this package are imported, in either order.

So a checkpoint that was made of the demo model loads with plain transformers after ``import mmneurons``. Importing this
imports neither torch nor transformers: it waits until somebody imports the part of transformers that knows models.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["register_with_transformers"]

KNOWS_MODELS = "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register the tower now, if transformers is there, or else as soon as it is."""
    if KNOWS_MODELS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    from mmneurons.demo.vision_tower import register

    register()


class _Waiting(MetaPathFinder):
    """Finds nothing by itself: it lets others find the module, and has something done behind its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != KNOWS_MODELS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """Loads as another loader does, then registers the tower."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        _register()
