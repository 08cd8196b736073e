"""The results database. All SQL is here."""
