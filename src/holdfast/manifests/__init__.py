"""Manifests and files: what was backed up over HTTP, by account. No HTTP here."""
