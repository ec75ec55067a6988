"""Tencent's services: COS, TRTC (callbacks, UserSig, pull URL) and credentials.

Rule: third-party errors are wrapped here, and no message, log field or `repr` contains a secret.
"""
