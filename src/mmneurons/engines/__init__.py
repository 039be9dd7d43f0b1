"""Where the work on a data set runs: in this process (``local``)."""

__all__: list[str] = []
