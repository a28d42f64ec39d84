"""What several test files build their inputs with: tiny checkpoints, artifacts, tokenizers, GGUF files."""
