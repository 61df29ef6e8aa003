"""What every room may use: errors, atomic files, fingerprints, identities, what a person sees."""
