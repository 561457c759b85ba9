"""The data plane: ``api`` is the contract, ``compiled`` the plane that serves, ``reference`` the slow and obvious one."""
