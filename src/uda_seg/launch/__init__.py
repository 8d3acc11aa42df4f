"""Ranks: how they are started, watched and stopped."""
