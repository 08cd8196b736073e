"""One worker process: its loop, its chunks and lanes, its heartbeat, and what changes it while it runs."""
