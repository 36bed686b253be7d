"""Logs, traces, profiles, metrics and scrape targets."""
