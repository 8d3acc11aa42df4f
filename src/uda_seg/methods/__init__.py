"""Adaptation methods, one file per paper."""
