"""Several processes that behave as one server: what they share, and how their figures become those of the server."""
