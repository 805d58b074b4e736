"""What keeps replicas in agreement."""
