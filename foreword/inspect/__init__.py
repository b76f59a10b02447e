"""Inside a soft prompt: nearest words, what is left of its first words, attention paid to it, what each token does."""
