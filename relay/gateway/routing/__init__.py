"""Where flows go: the upstreams, their health and their names, and the choice among them."""
