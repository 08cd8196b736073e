"""Completions that were paid for once: in memory, and in Redis for all workers."""
