"""Tencent and the outside world: TRTC's callbacks and addresses, COS, credentials, and the sender of webhooks.

May import `machine` and `events`, and no other room. Rule: third-party errors are wrapped at this door, and no secret is
ever part of a message, a log field or a `repr`.
"""
