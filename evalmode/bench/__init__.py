"""Measure a server: how fast it answers, what that costs, and how near it comes to ONNX Runtime alone."""
