"""What each command does; `run` is the main flow on one screen."""
