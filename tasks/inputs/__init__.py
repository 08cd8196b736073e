"""A file of destinations, as people have it, becomes destinations."""
