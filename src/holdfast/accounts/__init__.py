"""Accounts: who somebody is, what he may do, how much he may store. No HTTP here."""
