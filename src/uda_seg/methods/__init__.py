"""One paper, one file: each reads top to bottom beside its paper."""
