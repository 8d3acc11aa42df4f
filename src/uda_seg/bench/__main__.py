"""`python -m uda_seg.bench`."""

from uda_seg.bench import main

main()
