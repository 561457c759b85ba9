"""The firm's own certificate authority, which makes the relay a media host for the firm's clients, and for nobody else.

``certificates`` builds and signs; ``folder`` keeps the files.
"""

from relay.ca.folder import AuthorityFile, AuthorityFolder, HostCertificate, host_certificates

__all__ = ["AuthorityFile", "AuthorityFolder", "HostCertificate", "host_certificates"]
