"""Installed packages: the programs of other agents and Node, below `<data-dir>/packages`, each pinned by digests."""
