"""How long a test waits for something that always comes: only a hang takes this long.

It is far above what any machine needs, however slow or busy, and no result depends on it.
"""

PATIENCE = 1800.0  # seconds
