"""Command-line handling shared by all commands."""
