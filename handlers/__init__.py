"""What we do when something is said: deciding handlers (in a transaction, no I/O) and doing handlers (I/O, no transaction)."""
