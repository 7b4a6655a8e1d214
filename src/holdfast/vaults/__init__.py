"""Vaults: places where other programs keep their own repositories, by restic's REST protocol. Their rules, no HTTP."""
