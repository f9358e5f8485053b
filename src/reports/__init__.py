"""Cells, curves and the report page, from files and plain values."""
