"""Data sets at rest: caches, shards and stored labels."""
