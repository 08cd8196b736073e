"""The servers: their pool of connections, requests, replies, errors and health."""
