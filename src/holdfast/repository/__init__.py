"""The core: chunking, packs, index, snapshots, prune, check. It needs a storage and a key, and nothing else.

``repository.py`` opens one and hands out the parts; ``format.py`` has every stored structure; ``docs/format.md`` is the
specification both follow.
"""
