"""Training: one job, its loss, its optimisers, its record, and gangs of prompts over one frozen model."""
