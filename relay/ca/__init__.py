"""The firm's own certificate authority. With it the relay is a media host for the firm's clients, and only for them.
Another one, in a folder of its own, vouches for clients that show the relay certificates.

``certificates`` builds and signs; ``folder`` keeps the files.
"""

from relay.ca.folder import AuthorityFile, AuthorityFolder, HostCertificate, host_certificates

__all__ = ["AuthorityFile", "AuthorityFolder", "HostCertificate", "host_certificates"]
