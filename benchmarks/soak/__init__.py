"""Long and hostile traffic: attacks, leaks, overload, restarts, swaps, kills."""
