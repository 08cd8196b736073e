"""The graph of focused prompts, and what becomes of their answers."""
