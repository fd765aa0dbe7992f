"""When what runs together: queue, batches, slots, the budget for decoding images."""
