"""Activations of the clean and the ablated run, metrics, and the whole model with any set of edges."""
