"""Scores: metrics equal to the official scorers', their intervals, and the runner that applies them to a task."""
