"""Finders over sets of inputs, one file each: which neurons belong to a domain, or to a modality.

They take what neurons did over many positions (``mmneurons.vlm.statistics``), not one word of one caption, so their
results are neurons of the model and not of a finding. A new one is a new file and one line in ``SET_FINDERS``.
"""

from __future__ import annotations

from mmneurons.finders.sets.dape import Dape, DomainNeurons, find_domain_neurons
from mmneurons.finders.sets.modality import (
    Contrast,
    ContrastNeurons,
    Modality,
    ModalityNeurons,
    OverlapRow,
    find_contrast_neurons,
    find_modality_neurons,
    importance_between,
    overlap_table,
)

__all__ = [
    "SET_FINDERS",
    "Contrast",
    "ContrastNeurons",
    "Dape",
    "DomainNeurons",
    "Modality",
    "ModalityNeurons",
    "OverlapRow",
    "find_contrast_neurons",
    "find_domain_neurons",
    "find_modality_neurons",
    "importance_between",
    "overlap_table",
]

SET_FINDERS: dict[str, type] = {
    "dape": Dape,
    "modality": Modality,
    "contrast": Contrast,
}
