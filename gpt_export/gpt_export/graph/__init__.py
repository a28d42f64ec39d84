"""From a GPT module to an ONNX graph, and from a graph's weights back to a module."""
