"""What a machine with a GPU is checked and measured with."""
