"""Messages: schemas.json, its codec, and the requests of users."""
