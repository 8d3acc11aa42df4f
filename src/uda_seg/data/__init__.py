"""Data: class taxonomies, data sets, samplers, loaders and the rendered Streets data set."""
