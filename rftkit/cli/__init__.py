"""The command `rftkit`: each module has a family of commands, which call the other packages.

`app` has the root command and the commands without a family.
"""
