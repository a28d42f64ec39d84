"""All code that knows ONNX Runtime: sessions, providers, bound memory."""
