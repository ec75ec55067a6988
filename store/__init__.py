"""The database: tables, deciding transactions, outbox, leases, deadlines, queries. The only package that knows SQL."""
