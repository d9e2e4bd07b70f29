"""Figures as they are stored, told and tabled."""
