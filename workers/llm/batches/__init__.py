"""Batches of prompts that a provider answers in its own time."""
