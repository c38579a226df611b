"""Image classification. Importing this registers the toolkit's backbones with timm.

import toolkit.tasks.classify
timm.create_model("vig_tiny")
"""

from toolkit.tasks.classify import hornet, vig  # noqa: F401
