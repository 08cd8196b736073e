"""From a prompt to a validated completion: cache, single flight, pool, client."""
