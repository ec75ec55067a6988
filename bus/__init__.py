"""How messages travel: the local bus inside the process, RabbitMQ between nodes. Imports `machine` and `events`."""
