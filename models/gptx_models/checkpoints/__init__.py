"""Checkpoint folders as Hugging Face writes them: configs, weights, tokenizer files."""
