"""The same functions as in src/spaces, faster."""
