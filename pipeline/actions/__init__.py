"""What `action=NAME` does: one file an action."""
