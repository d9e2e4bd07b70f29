"""Where an expert's bytes are, which experts are in RAM, and how the others get there."""
