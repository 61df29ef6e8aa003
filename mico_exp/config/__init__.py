"""From options to the objects that they name."""
