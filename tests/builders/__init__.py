"""Builders of the tests' inputs: tiny checkpoints, artifacts, tokenizers, GGUF files."""
