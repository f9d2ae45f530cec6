"""Text to ids and back: tokenisation, SQuAD, documents."""
