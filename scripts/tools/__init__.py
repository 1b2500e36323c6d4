"""What the scripts run: the set-up, the test suite, and the one-command boot.

The set-up part runs before anything is installed: it imports the standard library only.
"""
