"""Programs for operators that ask a running relay over its admin listener: ``top`` and ``capture``.

Both ask through ``listener``.
"""
