"""How messages travel: the local bus inside the process; RabbitMQ later. Imports `machine` and `events`."""
