"""Data on disk and into the graph."""
