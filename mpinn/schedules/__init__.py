"""What carries batches through the depth of a model."""
