"""Hydra's configuration groups; see `config.yaml`."""
