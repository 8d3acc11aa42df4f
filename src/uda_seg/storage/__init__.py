"""Atomic files, folder locks and the user's cache."""
