"""The file in an ONNX Runtime session, and the CPUs that it may use."""
