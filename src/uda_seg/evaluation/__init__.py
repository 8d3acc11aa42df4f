"""Evaluation of segmentation and depth: metrics, tables, benchmark submissions."""
