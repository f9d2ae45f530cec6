"""What scripts have to do with the operating system. Knows nothing of BERT or OneFlow."""
