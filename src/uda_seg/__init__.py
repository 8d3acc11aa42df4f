"""Unsupervised domain adaptive semantic segmentation: labelled synthetic images in, a network for real ones out."""

__version__ = "0.1.0"
