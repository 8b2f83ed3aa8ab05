"""What the shim writes and the engine reads of a container's standard streams; no module here does I/O but `jsonfile`'s
writer."""
