"""Models and checkpoints that are made up to be measured."""
