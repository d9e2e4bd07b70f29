"""What a conversation keeps, layer by layer: states behind one protocol, keys and values first."""
