"""Shipped scenarios: small lessons, one YAML file each."""
