"""What every long-lived process of ours does: signals, shutdown, file descriptors, waiting for Redis."""
