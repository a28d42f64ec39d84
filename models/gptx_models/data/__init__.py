"""Training data: files to examples, examples to batches of token ids."""
