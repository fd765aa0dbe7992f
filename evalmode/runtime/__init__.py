"""Running artifacts on ONNX Runtime: providers, sessions, models, and the CPUs that they may use."""
