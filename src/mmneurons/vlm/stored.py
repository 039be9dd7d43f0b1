"""How a checkpoint keeps the weights of a model: under other names, in pieces or turned, as transformers reads it.

A model that was loaded remembers what was renamed and put together; ``save_pretrained`` undoes it, and so do we, but a
few weights at a time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mmneurons.vlm.weights import here

__all__ = ["may_be_absent", "stored_as", "weights"]


def weights(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """All weights by their names, on the CPU: those of one block together, and those of no block.

    What a checkpoint keeps as one tensor, or in pieces, is of one block.
    """
    state = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, Tensor)}
    groups = defaultdict(list)
    for name in state:
        numbered = re.match(r".*?\.\d+\.", name)
        groups[numbered[0] if numbered else ""].append(name)
    for names in groups.values():
        yield {name: here(model, name, state[name]).detach().cpu() for name in names}


def stored_as(model: PreTrainedModel, some: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint of a model keeps for some of its weights, by the names in the files.

    Args:
        model: the model.
        some: weights, or other tensors of their shapes, by their names in the model.

    Raises:
        ValueError: transformers cannot undo what it did to them, or they are not all that one tensor is made of.
    """
    try:
        return revert_weight_conversion(model, dict(some))
    except (KeyError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{next(iter(some))} cannot be turned into what is stored: {error}") from error


def may_be_absent(model: PreTrainedModel) -> set[str]:
    """The names in the files of weights that are shared, of which a checkpoint may keep one alone."""
    sharing = defaultdict(list)
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor) and weight.device.type != "meta" and weight.numel():
            sharing[weight.device, weight.data_ptr(), weight.shape].append(name)
    state = model.state_dict()
    shared = {name: state[name] for names in sharing.values() if len(names) > 1 for name in names}
    return set(stored_as(model, shared)) if shared else set()
