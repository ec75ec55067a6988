"""Everything that knows SQL: tables, guarded updates, journal, outbox, leases, deadlines. Imports `machine` and `events`."""
