"""Pure functions on tensors: the vocabulary the papers are written in."""

IGNORE = 255  # the train id of pixels that no loss and no metric counts
