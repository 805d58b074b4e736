"""Members of a population: their update, their ranking, and which of them stay."""
