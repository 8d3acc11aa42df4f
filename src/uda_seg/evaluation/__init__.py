"""Scores of a segmentation and how they are shown."""
