"""A method, a network and a data set for uda_seg in a separate package."""
