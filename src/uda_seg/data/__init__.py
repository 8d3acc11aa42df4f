"""What reaches the step: class taxonomies, data sets, samplers, the paired loaders and the built-in world."""
