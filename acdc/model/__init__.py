"""The transformer in pieces that can be evaluated alone, and the loaders that map checkpoints onto it."""
