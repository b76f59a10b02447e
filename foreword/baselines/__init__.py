"""What soft prompts are compared with."""
