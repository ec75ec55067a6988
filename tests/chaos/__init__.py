"""Chaos: the real service on either engine, made to die, hang or fail at its named fault points, and an audit."""
