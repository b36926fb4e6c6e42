"""Placeholder until the script is written."""
