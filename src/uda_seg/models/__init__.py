"""Networks: tensors in, tensors out. Nothing here knows Lightning, Hydra or a training method."""
