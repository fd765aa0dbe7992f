"""Checks that a network is in eval mode and answers as expected, when it is certified and at any time after."""
