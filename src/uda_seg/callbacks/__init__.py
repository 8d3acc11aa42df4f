"""Lightning callbacks and loggers: teacher EMA, checkpoints, image panels, CSV log, progress, signals."""
