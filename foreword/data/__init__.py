"""Data: records (files, data sets, verified downloads), tokenised examples, batches. `records` is the lowest layer."""
