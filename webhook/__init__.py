"""Delivers results: signed webhooks over HTTP, guarded against server-side request forgery."""
