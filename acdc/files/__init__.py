"""Reading and writing circuits: our own file, and the formats of others."""
