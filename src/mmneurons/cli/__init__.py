"""The command ``mmn``: one file per subcommand, nothing heavy imported before a subcommand needs it."""

__all__: list[str] = []
