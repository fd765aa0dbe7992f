"""Tables and drawings in the documents: from the code, and, in ``measured``, from published results.

``python -m docs.tables`` writes them; a test fails if one is out of date. A drawing is a file; a table stands between
``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository
