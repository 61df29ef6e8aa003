"""Records, scenarios and challenge points, as the competition lays them down."""
