"""Results on their way from the worker to the database."""
