"""The command line. ``main`` finds the command and translates errors; one module for each family of commands."""
