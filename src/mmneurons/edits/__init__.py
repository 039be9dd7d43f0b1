"""Edits of output vectors: found, applied, withdrawn, written to files, shipped."""

from mmneurons.edits.edit import Delta, Edit

__all__ = ["Delta", "Edit"]
