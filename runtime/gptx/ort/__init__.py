"""All code that knows ONNX Runtime: its library, devices, sessions and IO binding."""
