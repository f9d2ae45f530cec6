"""Reads and writes records, and feeds them into the graph."""
