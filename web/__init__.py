"""The HTTP room: sessions, TRTC callbacks, probes. Imports `machine` and `events` of ours."""
