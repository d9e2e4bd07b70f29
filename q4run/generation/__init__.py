"""From a prompt to text: sessions, sampling, completions, conversations."""
