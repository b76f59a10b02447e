"""What soft prompts are compared with: other ways to use the same frozen model, in the same job."""
