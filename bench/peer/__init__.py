"""llama.cpp, the peer that q4run is measured beside."""
