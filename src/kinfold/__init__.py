"""Many models of one structure, trained on many splits at once and teaching each other; the best one is kept.

Kinfold trains one network structure on many random splits of one labelled data set at once, lets the training
runs teach each other while they train, and hands back the single model that does best across all the validation
sets, with an honest estimate of how good it is.

It implements the framework of *A Novel DNN Training Framework via Data Sampling and Multi-Task Optimization*
(Zhang, Qin, Pan, Sellis, arXiv:2007.01016).
"""

from kinfold._version import __version__ as __version__
