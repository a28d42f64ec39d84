"""A GPT module to an ONNX graph, and a graph's weights back into a module."""
