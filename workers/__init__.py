"""WHO does it: runtime, pipeline, LLM, results, dashboard."""
