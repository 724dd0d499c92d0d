"""The run folder: paths of results, claims of running processes, and recorded facts."""
