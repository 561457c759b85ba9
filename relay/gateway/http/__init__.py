"""HTTP on the TLS port: the site that answers it, and the upgrades that leave it for the data plane."""
