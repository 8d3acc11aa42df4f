"""What only the prepare command needs."""
