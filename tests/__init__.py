"""Tests by layer: unit, property, contract, integration, crash, system; long and bench have commands of their own."""
