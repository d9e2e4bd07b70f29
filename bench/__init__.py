"""Measurements: speed, streaming and quality, each beside a peer where there is one."""
