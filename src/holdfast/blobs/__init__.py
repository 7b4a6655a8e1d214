"""Blobs in buckets: see ``blobs`` for what is promised, ``filesystems`` for where their contents lie."""
