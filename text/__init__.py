"""Converts text to ids and back: tokenisation, SQuAD, documents."""
