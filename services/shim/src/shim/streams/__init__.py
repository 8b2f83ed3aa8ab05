"""A process's standard streams: where its output goes, where its input comes from, and who is attached."""
