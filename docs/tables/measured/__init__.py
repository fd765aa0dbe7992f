"""Tables and sentences from the results of benchmarks, each with its source."""
