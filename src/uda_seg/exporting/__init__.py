"""Trained networks for other programs (graphs, weights) and for other people (the Hugging Face hub)."""
