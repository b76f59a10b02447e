"""Serving on one machine: many forewords, one frozen model, every request exact."""
