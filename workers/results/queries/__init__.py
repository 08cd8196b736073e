"""What users and pages ask of the results database."""
