"""Writes an artifact as other servers and hubs take it: one module a layout, and a table of them in ``layouts``."""
