"""Builds the objects and hands them down: ``app`` for the command line, ``server`` for ``holdfast serve``."""
