"""What is counted and can be scraped: containers, calls, the process; and the HTTP endpoint that says it."""
