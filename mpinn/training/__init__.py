"""The loop of a run, and what it does between steps: measure, count, tell, agree to stop."""
