"""Peculiarities of the papers' released codes, for the recipes that reproduce published numbers."""
