"""Many runs: how jobs ended, the table over them, and the search."""
