"""The operator beside the weights: load, save, export, and the contract that proves it.

`save_load.py` first; `manifest.py` is wemask_config.json; `export.py` writes a folder that loads
without wemask; `contract.py` is `wemask validate`. May import `settings`, `measure` and the rooms
below them.
"""
