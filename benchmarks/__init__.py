"""Measurements: speed, quality, long and hostile traffic. Run from a clone: ``python -m benchmarks.speed.serve``."""
