"""HTTP API: sessions, results, TRTC's callback endpoint, probes."""
