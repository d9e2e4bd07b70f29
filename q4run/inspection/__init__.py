"""What people are told about a machine and about a model file."""
