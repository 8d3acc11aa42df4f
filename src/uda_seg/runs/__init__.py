"""One run: what it is built from, its folder and its checkpoints."""
