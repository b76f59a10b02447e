"""Foreword: learned prefixes and prompts in front of a text, for a language model that stays frozen."""

__version__ = "0.1.0"
