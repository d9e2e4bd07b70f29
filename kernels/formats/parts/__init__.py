"""Parts that the formats of several types share."""
