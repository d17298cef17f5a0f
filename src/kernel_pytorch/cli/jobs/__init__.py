"""The commands about jobs: submit, status, list, logs, events, cancel, requeue."""
