"""What people look at: the picture of a circuit and the page about it."""
