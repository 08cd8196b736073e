"""From a job to Celery messages, and what is left of it: app, task, producer, ledger, leases, retry, control."""
