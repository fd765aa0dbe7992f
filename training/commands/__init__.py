"""``evalmode train``, ``export``, ``report`` and ``quickstart``. torch is imported when a command runs, not before."""
