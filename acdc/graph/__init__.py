"""Senders, receivers, edges, circuits and scores: values that know no model."""
