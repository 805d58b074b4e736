"""Data sets, and the batches that are dealt from them."""
