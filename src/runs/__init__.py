"""A run: its settings, its folder, what it is built from, how it is resumed."""
