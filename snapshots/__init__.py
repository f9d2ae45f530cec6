"""Reads and writes models on disk."""
