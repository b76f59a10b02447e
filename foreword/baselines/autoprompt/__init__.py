"""AutoPrompt: a prompt of written words, found by exchanging one token at a time (Shin et al. 2020; RECIPES 4)."""
