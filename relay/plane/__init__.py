"""The data plane: ``api`` is the contract, ``reference`` the slow and obvious plane, the ``.pxd`` files C leaves."""
