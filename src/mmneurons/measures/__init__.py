"""What neurons are measured by, one file each; see ``mmneurons.measures.suites`` for all of them together."""

__all__: list[str] = []
