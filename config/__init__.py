"""Settings, logging and redaction."""
