"""The operator's room: settings, logging, commands. Imports nothing of ours."""
