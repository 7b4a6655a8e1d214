"""Storage: a dumb, durable object store. ``base`` is the contract, every other module one kind of place."""
