"""Soft prompts: what they are (spec), how they start (init), and how they enter a frozen model (inject)."""
