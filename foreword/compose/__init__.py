"""What prompts can do together: ensembles, transfer across tasks and models, and compositions of several prompts."""
