"""Pure functions on tensors: the vocabulary the papers are written in."""
