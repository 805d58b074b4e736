"""One run from its door to its summary: what is checked, composed, kept, watched, and what survives."""
