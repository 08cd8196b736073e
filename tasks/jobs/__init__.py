"""Jobs as Redis knows them: their registry, budgets, totals and events."""
