"""Tools that make and measure the classifier; none of them is part of the program.

They find each other by their plain names, whether one is run as a file (`python tools/train_classifier.py`) or as a
module (`python -m tools.classifier_table`): a run as a file puts this folder on the path, and here we do the same.
"""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)
