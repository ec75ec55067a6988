"""What a recording, a session and a callback may become. Pure: no I/O, no clock of its own. Imports only `events`."""
