"""Scheduling: the queue, batches, slots, and the memory budget for decoding images."""
