"""Text from a frozen model with a different soft prompt, or none, in every row."""

from foreword.generate.offline import generate, generate_ids, logits

__all__ = ["generate", "generate_ids", "logits"]
