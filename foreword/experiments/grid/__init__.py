"""Grids: axes in YAML become content-addressed runs, scored and told on one page."""
