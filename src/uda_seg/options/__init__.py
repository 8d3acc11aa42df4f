"""Constraints of option values, and validation."""
