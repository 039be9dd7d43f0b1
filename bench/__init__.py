"""Side-by-side measurements. What each prints stands in ``bench/README.md``."""
