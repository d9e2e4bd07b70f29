"""What is measured: speed, streaming, quality, conversion; each run in a process of its own."""
