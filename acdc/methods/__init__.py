"""Methods of circuit discovery, one file each."""
