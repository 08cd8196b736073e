"""A job's report: where its time and money went, and what to change."""
