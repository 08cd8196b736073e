"""What `themes doctor` looks at, by subject: each check says what was found, and what to do when that is not fine."""
