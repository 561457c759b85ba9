"""STUN and TURN hosts of the emulator.

slow  hosts in plain Python
"""
