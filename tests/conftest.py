"""Fixtures of all test layers."""

from tests.azurite import azurite, blob_config, store

__all__ = ["azurite", "blob_config", "store"]
