"""What a conversation keeps: keys and values, layer by layer."""
