"""The plan for many ranks: what a step costs on clusters that are described, not at hand."""
