"""Checking, unpacking and repairing data sets, for the prepare command."""
