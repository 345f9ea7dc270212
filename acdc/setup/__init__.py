"""Resolve the options of a run, and load what a config names."""
