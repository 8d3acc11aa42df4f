"""What happens around the step: the teacher's average, checkpoints, panels, progress."""
