"""What each command does; its door is the module of the same name above."""
