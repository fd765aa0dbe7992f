"""How well classifiers classify, and how well checks and monitors find what they should."""
