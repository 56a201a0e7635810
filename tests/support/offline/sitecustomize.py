"""Imported by Python at start-up in every child of the tests: this folder is in PYTHONPATH."""

import network_guard

network_guard.install()
