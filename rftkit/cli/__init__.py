"""The command `rftkit`: thin commands over the rooms, one module a family.

Not here: logic. `app` holds the root command and those that stand alone.
"""
