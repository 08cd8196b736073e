"""How often an endpoint may be asked: rate limits, learned rates, cool-downs, concurrency."""
