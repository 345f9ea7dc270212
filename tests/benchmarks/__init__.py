"""Benchmarks: how long a discovery takes, against what it could take at best and against other implementations."""
