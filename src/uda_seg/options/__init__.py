"""Constraints on option values, and their validation."""
