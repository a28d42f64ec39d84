"""Architectures that gptx's GPT does not cover, exported and quantized through optimum-onnx."""
