"""What the daemon knows by heart: one SQLite file, ``<root>/metadata.db``, with a module per kind of object."""
