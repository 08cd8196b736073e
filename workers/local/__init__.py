"""A job in one process, without Redis."""
