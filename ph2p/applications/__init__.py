"""What a prompt is good for once it is found: a module for each use, and `ph2p apply NAME` for all.

Each application is a function of its module that takes models and settings and gives values; `command` shows them.
"""
