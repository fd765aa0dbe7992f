"""Measure a server: its throughput and latency, the processor time of a request, and the throughput of ONNX Runtime."""
