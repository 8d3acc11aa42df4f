"""A run: construction, folder, checkpoints and record."""
