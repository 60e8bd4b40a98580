"""How an installation is set up: systemd units, Azurite's version for labs, and labs themselves (`lab`, a package)."""
