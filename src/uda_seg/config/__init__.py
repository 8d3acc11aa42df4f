"""The configuration: its schema, and how it is composed and replayed."""
