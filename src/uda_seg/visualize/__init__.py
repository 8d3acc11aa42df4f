"""Visualisation of labels, scores and panels."""
