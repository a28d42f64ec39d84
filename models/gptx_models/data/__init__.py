"""Training data: files to texts and examples, these to batches of token ids."""
