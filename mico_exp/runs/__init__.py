"""What is logged to MLflow, and read back."""
