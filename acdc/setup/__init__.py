"""Every option, resolved, and what a config names, loaded."""
