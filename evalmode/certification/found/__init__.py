"""Reads what the files of other tools state about a network: labels, sizes, preprocessing, and where the network is.

Each reader is a function from a ``Place``, or from the network itself, to facts with their sources. No code of the
files is executed, and nothing is unpickled.
"""
