"""What bounds a job and the live system, and what to do about it."""
