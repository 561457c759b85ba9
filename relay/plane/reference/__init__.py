"""The reference plane: the contract on asyncio, obvious before it is fast; what the compiled plane is compared with."""
