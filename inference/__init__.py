"""Inference: applies the model of a snapshot to text."""
