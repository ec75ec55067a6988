"""The composition root: builds a node, or the one object that a command of the operator needs, from the settings."""
