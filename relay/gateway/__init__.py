"""The control plane: it decides where flows go, watches upstreams, and answers HTTP. It never sees a media packet."""
