"""Options of the methods: one frozen dataclass per method, inherited as the methods inherit.

A field has its constraint in the annotation, its default beside it, and its meaning, unit and source in the docstring
below. Sources: `paper`, `released` (the authors' code), or `ours` (neither has a number, or ours differs).
"""
