"""The state machines of a recording, a session and a delivery, and the values they share. No I/O."""
