"""Delivery of results: signed webhooks over HTTP, with a guard against server-side request forgery."""
