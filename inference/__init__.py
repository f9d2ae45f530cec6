"""A trained model in use: from a snapshot and text to what the model says of it."""
