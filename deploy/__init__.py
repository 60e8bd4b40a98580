"""How an installation is set up: systemd units, which configuration each daemon has (`configurations`), Azurite's version for labs, and
labs themselves (`lab`, a package)."""
