"""An example: a search space of one's own, on one-dimensional signals. README.md beside this package has the commands."""
