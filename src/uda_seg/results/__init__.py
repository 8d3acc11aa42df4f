"""Results of runs: their file, reading and comparing many of them."""
