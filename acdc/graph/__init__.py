"""Senders, receivers, edges, circuits and scores, independent of any model."""
