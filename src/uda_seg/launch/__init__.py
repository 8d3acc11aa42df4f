"""Starting, monitoring and stopping of ranks."""
