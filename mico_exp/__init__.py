"""Membership-inference experiments: the attack that won MICO 2023, tracked and repeatable."""

__version__ = "0.1.0"
