"""Training: from labelled images to a run, and from a run to an artifact."""
