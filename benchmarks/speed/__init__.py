"""What a request, a decode, a training step or an export costs, in time and memory."""
