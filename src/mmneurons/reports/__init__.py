"""What people look at: the report of a run as one HTML file (``html``) and figures (``figures``)."""

__all__: list[str] = []
