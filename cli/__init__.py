"""The command line `recorder`: commands, progress, tables and JSON. Most commands are clients of the HTTP API."""
