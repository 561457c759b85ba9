"""The data plane: ``api`` is the contract, ``compiled`` the plane that serves, ``reference`` its slow, obvious twin."""
