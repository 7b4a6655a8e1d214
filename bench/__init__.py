"""The benchmark room: corpora, peers, measures and the report that compares them.

Promise: standard library only, and nothing of Holdfast is imported. Holdfast is measured as a user runs it,
as a whole process started from the checkout.
"""
