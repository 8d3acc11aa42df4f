"""A method, a network and a data set for uda_seg, as a package of their own."""
