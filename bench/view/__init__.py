"""Recordings, shown as reports, pictures and traces."""
