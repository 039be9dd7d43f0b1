"""How the demo model was trained and measured; not part of the installed package."""
