"""File trees in and out of a repository: scan, exclude, back up, restore, diff, find, mount."""
