"""The machine that the runtime obeys: cores, memory, limits, Ctrl-C."""
