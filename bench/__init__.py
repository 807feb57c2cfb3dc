"""Measurements behind the figures in the docs. Not part of the installed package: run from a checkout."""
