"""A package, so that pytest does not put this folder on sys.path, where other tests' modules have
the same names; campaign.py, which is run as a script, does so in its own processes."""
