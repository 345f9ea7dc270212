"""The transformer in pieces that can be evaluated separately, and the loaders of checkpoints."""
