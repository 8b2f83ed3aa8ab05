"""What the tests that cross services share: programs, engines in directories of their own, the machine's state."""
