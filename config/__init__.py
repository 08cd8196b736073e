"""What can be set: settings, their defaults and where each value came from. Imports nothing of ours."""
