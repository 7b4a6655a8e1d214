"""Single contents that come over HTTP, on their way into the repository and kept there: see ``shelf``."""
