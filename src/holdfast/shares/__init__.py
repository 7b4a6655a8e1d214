"""One-time shares: files that are handed out a given number of times, and are gone then. Their rules, no HTTP."""
