"""Sweeps: outcomes of jobs, the table of results, and the Optuna search."""
