"""Settings, logging and redaction: read once from the environment, at the entry point."""
