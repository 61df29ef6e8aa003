"""From attack scores to statements about ε: the game, the bound that it proves, the ceiling."""
