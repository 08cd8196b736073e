"""WHAT is asked: messages, jobs, producer, task. Light to import."""
