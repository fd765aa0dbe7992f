"""The command ``evalmode``: parses options, calls the Python API, and prints the results."""
