"""Predictions of trained networks: on images, on videos, and on a page."""
