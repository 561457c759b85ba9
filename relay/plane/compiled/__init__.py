"""The compiled plane: worker threads of ``relay._fastpath`` carry packets; ``plane`` is the contract on top of them."""
