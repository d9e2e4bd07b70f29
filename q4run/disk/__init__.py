"""Reading from disk: methods (a file each), how fast a disk is, and which method suits it."""
