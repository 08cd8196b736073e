"""What `themes doctor` checks, a file a subject: what was found, and what to do about it."""
