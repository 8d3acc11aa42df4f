"""Storage of data sets: disk cache, shards, stored labels."""
