"""The run folder: where results lie, who works on them, what is recorded of them."""
