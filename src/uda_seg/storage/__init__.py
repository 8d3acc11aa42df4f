"""What keeps files whole and folders to one process."""
