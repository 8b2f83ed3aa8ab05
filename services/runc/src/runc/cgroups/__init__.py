"""Control groups: where they are, what is written to them, and the writing."""
