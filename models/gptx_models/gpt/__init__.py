"""The GPT in PyTorch: configuration, module, attention."""
